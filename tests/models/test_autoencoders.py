"""What all autoencoders with a continuous latent keep: roles, sizes, rates, clamps, reductions, recipes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models import build_model
from verisim.models.autoencoders.conv_vae import ConvVAE
from verisim.models.autoencoders.gaussian import PointPosterior, Posterior, clamped, frozen
from verisim.models.autoencoders.likelihoods import GaussianObservation, squared_error
from verisim.models.autoencoders.trunk import Decoder, Encoder, chosen_channels, whole_maps
from verisim.recipes import load_recipe
from verisim.roles import Autoencoder, Sampler

MODELS = {  # every autoencoder with a continuous latent, small
    "conv_vae": {"latent": 4},
    "svae": {"maps": 2, "side": 2},
    "vpga": {"latent": 4},
    "intro_vae": {"latent": 4},
    "soft_intro_vae": {"latent": 4},
}
NARROW = {"width": 8, "max_width": 16, "components": 2}


def made(name: str, size: tuple[int, ...] = (16, 16), classes: int = 0, **settings):
    torch.manual_seed(0)
    return build_model(name, {**MODELS[name], **NARROW, **settings}, ImageSpec(size), classes)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- all models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("size", [(33, 17), (30, 30), (16, 16, 16), (9, 10, 11)])
def test_any_size_is_padded_and_cropped_back(name, size):
    """Odd and even, 2D and 3D: loss, code and image have the right shapes."""
    model = made(name, size)
    x = noise(2, 1, *size)
    assert torch.isfinite(model.trial_loss(x, None))
    z = model.encode(x)
    assert z.shape == (2, model.latent) and model.decode(z).shape == x.shape
    assert isinstance(model, Autoencoder) and isinstance(model, Sampler)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_wrong_latent_length_is_a_clear_error(name):
    """What came, what is taken, where to get it."""
    with pytest.raises(
        VerisimError, match=rf"\(2, 5\).*takes \(B, {made(name).latent}\), as encode\(\) gives"
    ):
        made(name).decode(torch.zeros(2, 5))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("dims", [2, 3])
def test_finished_models_travel_in_one_file(name, dims, tmp_path):
    """Weights and ex-post density rebuild the sampler, also for volumes; all three priors draw."""
    size = (16,) * dims
    model = made(name, size)
    model.finalise(noise(30, 1, *size), None)
    model.eval()
    settings = {**MODELS[name], **NARROW}
    save_model(tmp_path / "w.safetensors", model, ModelCard(name, settings, model.spec))
    again, _ = load_model(tmp_path / "w.safetensors")
    drawn = {}
    for prior in ("normal", "gaussian", "mixture"):
        for m in (model, again):
            m.configure_sampling(prior=prior)
        drawn[prior] = again.sample(2, generator=seeded())
        torch.testing.assert_close(drawn[prior], model.sample(2, generator=seeded()), atol=1e-5, rtol=0)
    assert not torch.equal(drawn["normal"], drawn["gaussian"])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_constant_images_do_no_harm(name):
    """Images of one grey value: finite loss and gradients, finite density."""
    model = made(name)
    x = torch.full((8, 1, 16, 16), -1.0)
    model.trial_loss(x, None).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.net.parameters() if p.grad is not None)
    model.finalise(x, None)
    assert torch.isfinite(model.sample(2, generator=seeded())).all()


def test_default_priors():
    """VAEs sample their ex-post density; models trained for N(0, I) sample that."""
    want = {
        "conv_vae": "auto",
        "svae": "auto",
        "vpga": "normal",
        "intro_vae": "normal",
        "soft_intro_vae": "normal",
    }
    assert {name: made(name).options.prior for name in MODELS} == want


# --- posterior ------------------------------------------------------------------------------------


def test_reparameterised_draws_have_the_right_moments_and_gradients():
    """z = mu + sigma eps: mean and standard deviation within five standard errors; dz/dmu = 1."""
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2.0]])
    torch.manual_seed(0)
    n = 100_000
    z = Posterior(mean.expand(n, -1), log_variance.expand(n, -1), torch.zeros(n)).draw()
    sigma = (0.5 * log_variance[0]).exp()
    assert ((z.mean(0) - mean[0]).abs() < 5 * sigma / math.sqrt(n)).all()
    assert ((z.std(0) / sigma - 1).abs() < 5 / math.sqrt(2 * n)).all()
    mean = mean.clone().requires_grad_()
    log_variance = log_variance.clone().requires_grad_()
    draw = Posterior(mean, log_variance, torch.zeros(1)).draw()
    to_mean, to_variance = torch.autograd.grad(draw.sum(), (mean, log_variance))
    assert to_mean.tolist() == [[1, 1]]
    torch.testing.assert_close(to_variance, 0.5 * (draw - mean).detach())  # sigma eps / 2


def test_clamps_are_counted_per_image_and_nan_is_one_of_them():
    """Inside the range nothing is counted; NaN is counted and stays, so that the step is skipped."""
    log_variance = torch.tensor([[0.0, 8.0, -15.0], [9.0, -99.0, 0.0], [torch.nan, 0.0, 0.0]])
    inside, count = clamped(log_variance)
    assert count.tolist() == [0, 2, 1]
    assert inside[1].tolist() == [8, -15, 0] and inside[2].isnan().any()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_clamps_and_rates_are_logged(name):
    """An encoder gone wild shows in the part 'clamped'; the rate is there in nats and bits."""
    model, x = made(name), noise(3, 1, 16, 16)
    q = model.net.encode(x)
    assert float(q.parts()["clamped"].sum()) == 0
    torch.testing.assert_close(q.parts()["rate_bits"], q.parts()["kl"] / math.log(2))
    with torch.no_grad():
        model.net.encoder.head.bias.fill_(1e4)
    assert float(model.net.encode(x).parts()["clamped"].min()) >= 4


def test_nan_weights_are_skipped_by_the_base_class():
    """A NaN log variance makes a loss that is not finite: no update is made of it."""
    model = made("conv_vae")
    with torch.no_grad():
        model.net.encoder.head.bias[-1] = torch.nan
    loss, parts = model.training_loss(noise(3, 1, 16, 16), None)
    assert parts["clamped"].tolist() == [1, 1, 1] and not model.is_finite(loss)
    model.end_step()
    assert model.skipped == 1 and model.skipped_in_a_row == 1


def test_frozen_modules_pass_gradients_on():
    """No gradient for its parameters, one for its input, and only inside the block."""
    layer = torch.nn.Linear(2, 2)
    x = torch.ones(1, 2, requires_grad=True)
    with frozen(layer, None):
        y = layer(x)
    y.sum().backward()
    assert layer.weight.grad is None and x.grad is not None
    layer(x).sum().backward()
    assert layer.weight.grad is not None


# --- settings of the VAE --------------------------------------------------------------------------


def test_plain_autoencoder_has_no_noise_and_no_rate():
    """Rate 0, the same code every time, loss = -log p alone; a VAE of the same size has a rate."""
    model, x = made("conv_vae", posterior="point"), noise(4, 1, 16, 16)
    q = model.net.encode(x)
    assert isinstance(q, PointPosterior) and torch.equal(q.draw(), q.draw())
    loss, parts = model.training_loss(x, None)
    assert parts["kl"].tolist() == [0] * 4 == parts["rate_bits"].tolist()
    torch.testing.assert_close(loss, parts["nll"] / 256)
    assert float(made("conv_vae").net.encode(x).rate().detach().min()) > 0
    with pytest.raises(VerisimError, match=r"not defined for a plain autoencoder.*posterior gaussian"):
        model.bits_per_dim(x)


def test_beta_one_is_the_vae_and_beta_weighs_the_kl():
    """The same numbers at beta = 1; at beta = 3 the loss grows by twice the KL."""
    x, losses = noise(4, 1, 16, 16), {}
    for beta in (None, 1.0, 3.0):
        model = made("conv_vae", kl_warmup=0, **({} if beta is None else {"beta": beta}))
        torch.manual_seed(1)
        losses[beta], parts = model.training_loss(x, None)
    assert torch.equal(losses[None], losses[1.0])
    torch.testing.assert_close(losses[3.0] - losses[1.0], 2 * parts["kl"] / 256, rtol=1e-3, atol=1e-5)


def test_the_reduction_trap():
    """Squared error averaged over pixels beside a summed KL (as printed) is beta = number of pixels."""
    x, grads = noise(4, 1, 16, 16), {}
    for name, settings in {
        "printed": {"reduction": "mean", "beta": 1.0},
        "same": {"reduction": "sum", "beta": 256.0},
        "corrected": {"reduction": "sum", "beta": 1.0},
    }.items():
        model = made("conv_vae", kl_warmup=0, sigma="fixed", **settings)
        torch.manual_seed(1)
        loss, parts = model.training_loss(x, None)
        loss.mean().backward()
        grads[name] = torch.cat([p.grad.flatten() for p in model.net.parameters() if p.grad is not None])
        if name == "printed":
            constant = 0.5 * math.log(2 * math.pi * 2)
            torch.testing.assert_close(loss - constant, parts["mse"] / 4 + parts["kl"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(grads["printed"], grads["same"])
    assert float((grads["printed"] - grads["corrected"]).norm() / grads["corrected"].norm()) > 1


def test_fixed_sigma_is_the_squared_error_of_the_source():
    """-log p = sum of squares on [0, 1] plus a constant, and calibration leaves it alone."""
    observation = GaussianObservation(1, "fixed")
    x, out = noise(3, 1, 8, 8), noise(3, 1, 8, 8, seed=1)
    constant = 0.5 * 64 * math.log(2 * math.pi * 2)
    torch.testing.assert_close(observation.nll(out, x), squared_error(out, x) + constant)
    torch.testing.assert_close(squared_error(out, x), (((out + 1) - (x + 1)) / 2).square().flatten(1).sum(1))
    observation.calibrate(torch.tensor(0.01))
    assert float(observation.variance) == 2
    with pytest.raises(VerisimError, match=r"Unknown sigma 'fixd'.*Did you mean 'fixed'"):
        GaussianObservation(1, "fixd")


# --- trunk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("head", "millions"), [("conv", 3.31), ("dense", 405.9)])
def test_vae_8192_has_the_published_size(head, millions):
    """Golden numbers of source 001: 3.3 M with 1x1 convolutions, 406 M with linear layers (meta device)."""
    channels = (8, 32, 64, 128, 256)
    with torch.device("meta"):
        nets = (
            Encoder((256, 256), 1, channels, 16384, 4, False, head),
            Decoder((256, 256), 1, channels, 8192, 4, False, head),
        )
    assert sum(p.numel() for n in nets for p in n.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("side", [64, 112, 256, 512])
def test_the_trunk_builds_for_every_side_up_to_512(side):
    """Shapes at the sizes that the trunk is for, without computing anything."""
    channels = (8, 16, 32, 64, 128, 256)
    with torch.device("meta"):
        encoder = Encoder((side, side), 1, channels, 100, 4, True)
        decoder = Decoder((side, side), 1, channels, 50, 4, True)
        assert encoder(torch.empty(2, 1, side, side)).shape == (2, 100)
        assert decoder(torch.empty(2, 50)).shape == (2, 1, side, side)


def test_a_conv_head_keeps_latents_in_place():
    """A change in one corner of the image leaves the latents of the far corner alone; a dense head mixes all."""
    x = noise(1, 1, 64, 64)
    y = x.clone()
    y[..., :4, :4] = 0
    far = {}
    for head in ("conv", "dense"):
        model = made("conv_vae", (64, 64), latent=4 * 16 * 16, channels=(8, 8), head=head, norm=False)
        difference = (model.encode(x) - model.encode(y)).view(4, 16, 16).abs()
        assert float(difference[:, 0, 0].max()) > 0
        far[head] = float(difference[:, 8:, 8:].max())
    assert far["conv"] == 0 < far["dense"]


def test_conv_heads_take_classes_at_every_position():
    """Another class, another image, everywhere."""
    model = made("conv_vae", (16, 16), 3, latent=32, channels=(8, 8), head="conv")
    z = torch.zeros(1, 32)
    a, b = (model.decode(z, torch.tensor([c])) for c in (0, 1))
    assert float((a - b).abs().amin()) >= 0 and float((a - b).abs().mean()) > 1e-4
    model.training_loss(noise(4, 1, 16, 16), torch.tensor([0, 1, 2, 0]))[0].mean().backward()
    assert float(model.net.embedding.weight.grad.abs().sum()) > 0


def test_impossible_trunks_are_refused_with_what_would_do():
    """Too many halvings; latents that do not fill whole maps."""
    with pytest.raises(VerisimError, match=r"images of 16x16 pixels can be halved 4 times at most"):
        chosen_channels((16, 16), (8,) * 5, 32, 256)
    with pytest.raises(VerisimError, match=r"latent=500 does not fill whole maps of 8x8 = 64.*Nearest: 512"):
        whole_maps(500, (8, 8), "latent")
    with pytest.raises(VerisimError, match=r"latent=500.*8x8 = 64 positions.*Nearest: 512"):
        ConvVAE(ImageSpec((64, 64)), latent=500, channels=(8, 8, 8), head="conv")


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "latent"),
    [
        ("K-S1", 50),
        ("K-S2", 8192),
        ("K-S3", 81),
        ("K-S4", 8192),
        ("K-S5", 50),
        ("K-S5-literal", 50),
        ("K-S8", 50),
        ("K-X3", 50),
        ("K-S9.1", 50),
        ("K-S9.2", 50),
    ],
)
def test_recipes_are_the_systems_of_the_source(recipe, latent):
    """At 256 pixels, with the source's number of latents and its kernel; partial until reproduced."""
    found = load_recipe(recipe)
    settings = dict(found.settings("source")["model"])
    with torch.device("meta"):
        model = build_model(settings.pop("name"), settings, ImageSpec((256, 256)))
    assert model.latent == latent and settings["kernel"] == 4
    assert found.settings("source")["data"] == {"phantom": "knee", "size": 256}
    assert found.settings("small")["data"] == {"phantom": "knee", "size": 64}
    assert found.page == "docs/autoencoders.md"
