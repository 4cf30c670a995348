"""The VAE family: golden counts, exact losses and bounds, shapes and errors, and a short training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from verisim.data.spec import ImageSpec
from verisim.errors import RangeError, VerisimError
from verisim.models.autoencoders.conv_vae import ConvVAE
from verisim.models.autoencoders.gaussian import normal_log_density
from verisim.models.autoencoders.mlp_vae import MLPVAE
from verisim.models.autoencoders.trunk import Decoder, Encoder, trunk_channels
from verisim.roles import Autoencoder, Likelihood, Sampler

TINY = {"width": 8, "latent": 4, "components": 3}
PARTS = {"nll", "mse", "kl", "rate_bits", "clamped"}


def blobs(n: int, side: int, seed: int = 0) -> Tensor:
    """Gaussian spots of random place and width on black, (n, 1, side, side) in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    r = torch.linspace(-1, 1, side)
    centre, width = torch.rand(n, 2, 1, 1, generator=g) - 0.5, 0.1 + 0.3 * torch.rand(n, 1, 1, generator=g)
    square = (r[:, None] - centre[:, 0]) ** 2 + (r[None] - centre[:, 1]) ** 2
    return (2 * torch.exp(-square / (2 * width**2)) - 1)[:, None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def fit(model, x: Tensor, steps: int, batch: int = 32, label: Tensor | None = None) -> None:
    """`steps` batches as the trainer would run them, with gradients clipped at 1."""
    optimizer = model.optimizer()
    for _ in range(steps):
        model.begin_step()
        take = torch.randint(len(x), (batch,))
        loss, _ = model.training_loss(x[take], None if label is None else label[take])
        optimizer.zero_grad()
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
        optimizer.step()
        model.end_step()


# --- architecture ---------------------------------------------------------------------------------


def test_literal_mlp_has_the_published_size():
    """Golden number of source 004: 14.3 M at 128 px, H = 400, four layers, 200 latents."""
    assert count(MLPVAE(ImageSpec((128, 128))).net) == 14_327_184


def test_trunk_reproduces_vae_50_of_source_001():
    """Golden number of source 001: 3.85 M at 256 px without norm; the generic builder is its Table 5.2."""
    channels = trunk_channels((256, 256), 8, 256)
    assert channels == (8, 16, 32, 64, 128, 256)
    encoder, decoder = (
        Encoder((256, 256), 1, channels, 100, 4, False),
        Decoder((256, 256), 1, channels, 50, 4, False),
    )
    assert (count(encoder) + count(decoder)) / 1e6 == pytest.approx(3.85, abs=0.005)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (30, 30), (33, 17), (8, 8), (16, 24, 16), (9, 10, 11)])
@pytest.mark.parametrize("kernel", [3, 4])
def test_any_size_goes_through_and_comes_back(size, kernel):
    """2D and 3D, even and odd: padded inside, cropped back; all roles are played."""
    torch.manual_seed(0)
    model = ConvVAE(ImageSpec(size, 2), kernel=kernel, **TINY)
    x = torch.rand(3, 2, *size) * 2 - 1
    loss, parts = model.training_loss(x, None)
    assert loss.shape == (3,) and torch.isfinite(loss).all() and set(parts) == PARTS
    z = model.encode(x)
    assert z.shape == (3, 4) and model.decode(z).shape == x.shape
    assert model.sample(2, generator=seeded()).shape == (2, 2, *size)
    assert model.bits_per_dim(x, generator=seeded()).shape == (3,)
    assert all(isinstance(model, role) for role in (Sampler, Autoencoder, Likelihood))


@pytest.mark.parametrize("size", [(7, 32), (64,), (4, 4, 4)])
def test_too_small_sizes_are_refused_with_the_nearest(size):
    """Below 8 px nothing is left to halve: an error with the size and a legal one."""
    with pytest.raises(VerisimError, match="x".join(map(str, size)) + r" pixels.*Nearest: "):
        ConvVAE(ImageSpec(size), **TINY)


@pytest.mark.parametrize("build", [lambda s: MLPVAE(s, hidden=16, latent=4), lambda s: ConvVAE(s, **TINY)])
def test_samples_keep_the_contract(build):
    """Shape, float32, [-1, 1], the same from the same generator, training mode kept."""
    torch.manual_seed(0)
    model = build(ImageSpec((16, 16)))
    a, b, c = (model.sample(70, generator=seeded(s)) for s in (1, 1, 2))
    assert a.shape == (70, 1, 16, 16) and a.dtype == torch.float32 and float(a.abs().max()) <= 1
    assert torch.equal(a, b) and not torch.equal(a, c) and model.net.training
    assert model.sample(0).shape == (0, 1, 16, 16)
    with pytest.raises(VerisimError, match="trained without classes"):
        model.sample(1, torch.tensor(0))


@pytest.mark.parametrize("build", [lambda s: MLPVAE(s, hidden=16, latent=4), lambda s: ConvVAE(s, **TINY)])
def test_bad_input_is_named(build):
    """Another range, another latent length and a negative temperature are errors, not pictures."""
    model = build(ImageSpec((16, 16)))
    with pytest.raises(RangeError, match="values in"):
        model.encode(torch.full((2, 1, 16, 16), 255.0))
    with pytest.raises(VerisimError, match=r"\(2, 5\).*\(B, 4\)"):
        model.decode(torch.zeros(2, 5))
    model.configure_sampling(temperature=-0.5)
    with pytest.raises(VerisimError, match=r"temperature -0\.5"):
        model.sample(1)


@pytest.mark.parametrize(
    "build", [lambda s: MLPVAE(s, 3, hidden=16, latent=4), lambda s: ConvVAE(s, 3, **TINY)]
)
def test_classes_reach_the_decoder(build):
    """Another class, another image from the same latent; no class is allowed, an unknown one is not."""
    torch.manual_seed(0)
    model = build(ImageSpec((16, 16)))
    zeros, ones = (model.sample(4, torch.tensor(c), seeded()) for c in (0, 1))
    assert zeros.shape == (4, 1, 16, 16) and float((zeros - ones).abs().max()) > 1e-4
    assert model.sample(4, generator=seeded()).shape == zeros.shape
    loss, _ = model.training_loss(zeros, torch.tensor([0, 1, 2, 0]))
    assert loss.shape == (4,)
    with pytest.raises(VerisimError, match=r"0\.\.\.2"):
        model.sample(1, torch.tensor(3))


# --- losses ---------------------------------------------------------------------------------------


def test_literal_reduction_is_the_sum_over_the_batch():
    """The base class takes the batch mean; with "sum" that mean is the source's batch sum."""
    x = blobs(6, 16)
    losses = {}
    for reduction in ("sum", "mean"):
        torch.manual_seed(0)
        model = MLPVAE(ImageSpec((16, 16)), hidden=16, latent=4, loss_reduction=reduction)
        torch.manual_seed(1)
        losses[reduction] = model.training_loss(x, None)[0]
    torch.testing.assert_close(losses["sum"].mean(), losses["mean"].sum())


def test_conv_loss_is_the_negative_elbo_per_dimension():
    """Loss = (nll + KL) / (C prod S) after warm-up, and without the KL's full weight before."""
    torch.manual_seed(0)
    model, x = ConvVAE(ImageSpec((16, 16)), kl_warmup=10, **TINY), blobs(6, 16)
    for step, weight in ((0, 0.1), (4, 0.5), (50, 1.0)):
        model.step = step
        loss, parts = model.training_loss(x, None)
        torch.testing.assert_close(loss, (parts["nll"] + weight * parts["kl"]) / 256)


def test_log_variance_is_clamped():
    """An encoder gone wild cannot overflow exp(): log variances stay in [-15, 8]."""
    model = ConvVAE(ImageSpec((16, 16)), **TINY)
    with torch.no_grad():
        model.net.encoder.head.bias.fill_(1e4)
    assert float(model.posterior(blobs(2, 16))[1].max()) == 8


def test_free_bits_cost_nothing():
    """With free_bits every latent costs at least that much, so going below it gains nothing."""
    torch.manual_seed(0)
    model, x = ConvVAE(ImageSpec((16, 16)), free_bits=100.0, kl_warmup=0, **TINY), blobs(4, 16)
    loss, parts = model.training_loss(x, None)
    torch.testing.assert_close(loss, (parts["nll"] + 100.0 * 4) / 256)


def test_bits_per_dim_is_the_elbo_in_bits_and_tightens():
    """K = 1 equals the ELBO computed by hand; more samples lower the bound; same generator, same value."""
    torch.manual_seed(0)
    model, x = ConvVAE(ImageSpec((16, 16)), **TINY), blobs(8, 16)
    fit(model, x, 20, 8)
    model.configure_sampling(importance_samples=1)
    got = model.bits_per_dim(x, generator=seeded(7))
    mean, log_variance = model.posterior(x)
    z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=seeded(7))
    model.net.eval()
    log_px = model.net.observation.log_prob(model.net.decode(z, model.groups(8, None)), x)
    ratio = Normal(0.0, 1.0).log_prob(z).sum(1) - normal_log_density(z, mean, log_variance)
    torch.testing.assert_close(got, -(log_px + ratio) / (256 * math.log(2)), rtol=1e-5, atol=1e-6)
    model.configure_sampling(importance_samples=50)
    assert float(model.bits_per_dim(x, generator=seeded(7)).mean()) < float(got.mean())
    assert model.likelihood_is_bound


def test_bce_defines_no_bits_and_no_noise():
    """Cross-entropy on grey values is no likelihood, and the model says so."""
    model = ConvVAE(ImageSpec((16, 16)), likelihood="bce", **TINY)
    with pytest.raises(VerisimError, match="not defined for likelihood 'bce'"):
        model.bits_per_dim(blobs(2, 16))
    model.configure_sampling(noise=True)
    with pytest.raises(VerisimError, match="noise is not defined"):
        model.sample(2)
    assert not isinstance(MLPVAE(ImageSpec((16, 16)), hidden=8, latent=2), Likelihood)


@pytest.mark.parametrize("likelihood", ["sigma", "discretised_logistic"])
def test_noise_has_the_models_own_size(likelihood):
    """noise=True adds a draw of p(x | z) to the mean image, of the spread the likelihood has."""
    torch.manual_seed(0)
    model = ConvVAE(ImageSpec((32, 32)), likelihood=likelihood, **TINY)
    observation = model.net.observation
    with torch.no_grad():
        if likelihood == "sigma":
            observation.variance.fill_(0.01)
        else:
            observation.log_scale.fill_(math.log(0.1 * math.sqrt(3) / math.pi))
        model.net.decoder.layers[-1].weight.zero_()
        model.net.decoder.layers[-1].bias.zero_()
    plain = model.sample(4, generator=seeded())
    model.configure_sampling(noise=True)
    assert float(plain.abs().max()) == 0
    assert float(model.sample(4, generator=seeded()).std()) == pytest.approx(0.1, rel=0.05)


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["sigma", "discretised_logistic", "bce"])
def test_conv_vae_reconstructs_better_than_the_mean_image(likelihood):
    """Held-out blobs: it must learn places and widths; the mean image is the control."""
    torch.manual_seed(0)
    x, test = blobs(512, 16), blobs(128, 16, seed=1)
    model = ConvVAE(ImageSpec((16, 16)), width=16, latent=8, kl_warmup=50, likelihood=likelihood)
    model.enable_ema(0.95)
    fit(model, x, 100)
    control = float((x.mean(0) - test).square().mean())
    mse = float((model.decode(model.encode(test)) - test).square().mean())
    assert mse < (0.4 if likelihood == "bce" else 0.25) * control
    if likelihood != "bce":
        model.finalise(x, None)
        assert float(model.bits_per_dim(test, generator=seeded()).mean()) < 8  # uniform grey values


def test_mlp_vae_learns():
    """The baseline, literal but for its size, lowers its own loss."""
    torch.manual_seed(0)
    x = blobs(256, 16)
    model = MLPVAE(ImageSpec((16, 16)), hidden=64, latent=8, lr=1e-3)
    before = float(model.training_loss(x, None)[0].detach().mean())
    fit(model, x, 60)
    assert float(model.training_loss(x, None)[0].detach().mean()) < 0.8 * before
