"""VampPrior: the mixture against closed forms, its sampling, its bound, and what must not change without it."""

from __future__ import annotations

import math

import pytest
import torch
from tests.fake_device import DEVICE, fake_device
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models.autoencoders.conv_vae import ConvVAE
from verisim.models.autoencoders.gaussian import Posterior, importance_bound, normal_log_density
from verisim.models.autoencoders.vamp_prior import (
    PseudoInputs,
    mean_rate,
    mixture_log_density,
    mixture_sample,
    sampled_rate,
)

TINY = {"width": 8, "max_width": 16, "latent": 4, "components": 3}
VAMP = {**TINY, "prior": "vamp", "pseudo_inputs": 5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(n: int, seed: int = 0, d: int = 3) -> Posterior:
    """n Gaussians of d dimensions, random means and variances."""
    g = seeded(seed)
    mean, log_variance = torch.randn(n, d, generator=g), 0.7 * torch.randn(n, d, generator=g)
    return Posterior(mean, log_variance, torch.zeros(n))


def made(**settings) -> ConvVAE:
    torch.manual_seed(0)
    return ConvVAE(ImageSpec((16, 16)), **{**VAMP, **settings})


def images(n: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=seeded(seed)) * 2 - 1


def torch_mixture(q: Posterior) -> MixtureSameFamily:
    parts = Independent(Normal(q.mean.double(), (0.5 * q.log_variance.double()).exp()), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(q.mean)).double()), parts)


def test_mixture_density_is_that_of_torch():
    """log 1/K sum_k N(z; m_k, s_k^2), far from all components too; one component is its Gaussian."""
    q, z = posterior(7), 5 * torch.randn(20, 3, generator=seeded(1)).double()
    torch.testing.assert_close(mixture_log_density(z, q), torch_mixture(q).log_prob(z))
    one = posterior(1)
    torch.testing.assert_close(mixture_log_density(z, one), normal_log_density(z, one.mean, one.log_variance))


def test_one_pseudo_input_has_the_closed_form_kl():
    """With K = 1 and a known encoder the mean of the one-sample estimate is KL(N || N), within 4 standard errors.

    Control: the KL to N(0, I), which would be had by ignoring the pseudo-input, is not.
    """
    q, p = posterior(1, 2), posterior(1, 3)
    many = Posterior(q.mean.expand(40000, 3), q.log_variance.expand(40000, 3), torch.zeros(40000))
    found = sampled_rate(many, many.placed(seeded(5)), p)
    want = kl_divergence(
        Normal(q.mean, (0.5 * q.log_variance).exp()), Normal(p.mean, (0.5 * p.log_variance).exp())
    )
    error = float(found.std()) / 200
    assert abs(float(found.mean()) - float(want.sum())) < 4 * error
    assert abs(float(found.mean()) - float(q.rate())) > 20 * error
    torch.testing.assert_close(
        sampled_rate(q, q.placed(seeded(5)), q), torch.zeros(1).double(), rtol=0, atol=1e-12
    )


def test_samples_have_the_moments_of_the_mixture():
    """Mean and covariance of 40,000 draws; with temperature 0 only the means are drawn, all alike often.

    Control: a single Gaussian of the mixture's diagonal moments has no such correlation.
    """
    q = posterior(4, 7)
    q.mean[:, 1] = 2 * q.mean[:, 0]  # a mixture of diagonal Gaussians that is correlated
    z = mixture_sample(40000, q, seeded(1)).double()
    mean, variance = q.mean.double(), q.log_variance.double().exp()
    centre = mean.mean(0)
    want = torch.diag(variance.mean(0)) + (mean - centre).T @ (mean - centre) / 4
    assert float((z.mean(0) - centre).abs().max()) < 5 * float(want.diagonal().max()) ** 0.5 / 200
    assert float((torch.cov(z.T) - want).abs().max()) < 0.03 * float(want.diagonal().max())
    assert float((torch.diag(want.diagonal()) - want).abs().max()) > 0.1 * float(want.diagonal().max())
    found, counts = mixture_sample(4000, q, seeded(2), temperature=0.0).unique(dim=0, return_counts=True)
    assert len(found) == 4 and int(counts.min()) > 900


def test_the_loss_is_the_one_sample_bound():
    """loss = (nll + w [log q(z | x) - log p(z)]) / dims with p the posteriors of the pseudo-inputs, by hand."""
    model, x = made(kl_warmup=10), images(6)
    model.step = 4
    torch.manual_seed(3)
    loss, parts = model.training_loss(x, None)
    torch.manual_seed(3)
    q = model.net.encode(x)
    z = q.draw()
    p = torch_mixture(model.net.encode(torch.tanh(model.net.pseudo.w)))
    log_q = Normal(q.mean.double(), (0.5 * q.log_variance.double()).exp()).log_prob(z.double()).sum(1)
    rate = (log_q - p.log_prob(z.double())).float()
    torch.testing.assert_close(parts["kl"], rate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, (parts["nll"] + 0.5 * rate) / 256, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts["rate_bits"], parts["kl"] / math.log(2))
    loss.mean().backward()
    assert float(model.net.pseudo.w.grad.abs().sum()) > 0


def test_bits_are_under_the_true_prior():
    """K = 1 is the ELBO by hand under the mixture; fitted densities are used when asked for and not by default."""
    model, x = made(), images(6)
    model.eval()
    model.configure_sampling(importance_samples=1)
    got = model.bits_per_dim(x, generator=seeded(7))
    q = model.net.encode(x)
    z = q.placed(seeded(7))
    log_px = model.net.observation.log_prob(model.net.decode(z, model.groups(6, None)), x)
    p = torch_mixture(model.net.mixture())
    weight = log_px + p.log_prob(z.double()) - normal_log_density(z, q.mean, q.log_variance)
    torch.testing.assert_close(
        got, -importance_bound(weight[None].detach()) / (256 * math.log(2)), rtol=1e-6, atol=1e-6
    )
    model.finalise(images(40, 1), None)
    model.configure_sampling(prior="mixture", importance_samples=1)
    fitted = model.bits_per_dim(x, generator=seeded(7))
    model.configure_sampling(prior="vamp")
    assert not torch.equal(fitted, model.bits_per_dim(x, generator=seeded(7)))
    rate = model.rate_bits(x)
    want = mean_rate(q, model.net.mixture(), 1).detach() / math.log(2)
    torch.testing.assert_close(rate, want, rtol=1e-6, atol=1e-6)


def test_sampling_decodes_draws_of_the_mixture():
    """By default, before and after the ex-post density is fitted; normal is refused, vamp without it too."""
    model = made()
    model.eval()
    want = model.decode(mixture_sample(3, model.net.mixture(), seeded(4)).detach())
    assert torch.equal(model.sample(3, generator=seeded(4)), want)
    model.finalise(images(40, 1), None)
    assert torch.equal(model.sample(3, generator=seeded(4)), want)
    model.configure_sampling(prior="gaussian")
    assert not torch.equal(model.sample(3, generator=seeded(4)), want)
    model.configure_sampling(prior="normal")
    with pytest.raises(
        VerisimError, match=r"prior=normal: this model was trained with the VampPrior.*prior=vamp"
    ):
        model.sample(1)
    plain = made(prior="normal")
    plain.configure_sampling(prior="vamp")
    for ask in (lambda: plain.sample(1), lambda: plain.bits_per_dim(images(1))):
        with pytest.raises(VerisimError, match=r"no pseudo-inputs.*--model\.prior vamp"):
            ask()


def test_pseudo_inputs_start_from_averages_of_training_images():
    """Near the mean image, each another, and none near a training image: weights must not hold patients' images."""
    x = images(60)
    spread = float((x - x.mean(0)).square().mean())
    pseudo = PseudoInputs(ImageSpec((16, 16)), 7)
    pseudo.start_from(x, seeded(0))
    u = pseudo().detach()

    def distance(a, b):  # mean square between all pairs (len(a), len(b))
        return (a[:, None] - b[None]).square().flatten(2).mean(2)

    assert float(distance(u, x.mean(0)[None]).max()) < 0.3 * spread  # each is an average of several
    assert float(distance(u, x).min()) > 0.6 * spread
    assert float(distance(u, u)[~torch.eye(7, dtype=torch.bool)].min()) > 0.05 * spread
    copied = torch.tanh(torch.atanh(0.98 * x[:7]))
    assert float(distance(copied, x).amin(1).max()) < 0.01 * spread  # control: what copies would give
    pseudo.start_from(x.sign(), seeded(0))
    assert torch.isfinite(pseudo.w).all() and float(pseudo().detach().abs().max()) <= 1


def test_everything_travels(tmp_path):
    """prepare is repeatable; pseudo-inputs are in the averaged network and in the weights file."""
    model, again = made(), made()
    model.enable_ema(0.9)
    model.prepare(images())
    again.prepare(images())
    assert torch.equal(model.net.pseudo.w, again.net.pseudo.w)
    model.end_step()
    assert torch.equal(model.sampling_net.pseudo.w, model.net.pseudo.w)
    save_model(tmp_path / "w", model, ModelCard("conv_vae", VAMP, model.spec))
    loaded, _ = load_model(tmp_path / "w")
    assert torch.equal(loaded.net.pseudo.w, model.net.pseudo.w)
    torch.testing.assert_close(
        loaded.sample(2, generator=seeded(1)), model.sample(2, generator=seeded(1)), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("size", [(8, 12, 8), (9, 17)])
def test_volumes_and_classes(size):
    """3D and odd sizes; a class changes the image, not the latent."""
    torch.manual_seed(0)
    model = ConvVAE(ImageSpec(size, 2), 3, **VAMP)
    x = torch.rand(4, 2, *size) * 2 - 1
    model.prepare(x)
    loss, _ = model.training_loss(x, torch.tensor([0, 1, 2, 0]))
    assert torch.isfinite(loss).all() and model.rate_bits(x).shape == (4,)
    zeros, ones = (model.sample(2, torch.tensor(c), seeded()) for c in (0, 1))
    assert zeros.shape == (2, 2, *size) and not torch.equal(zeros, ones)
    assert torch.isfinite(model.bits_per_dim(x, torch.tensor([0, 1, 2, 0]), seeded())).all()


def test_nothing_is_left_on_the_cpu():
    """Training, sampling and reading on another device give the CPU's numbers."""
    x = images(4)
    here = made().eval()
    with fake_device():
        there = made().to(DEVICE).eval()
        there.training_loss(x.to(DEVICE), None)[0].mean().backward()
        found = [
            there.sample(2, generator=seeded(1)),
            there.bits_per_dim(x, None, seeded(1)),
            there.rate_bits(x),
        ]
        assert all(f.device == DEVICE for f in found)
        want = [here.sample(2, generator=seeded(1)), here.bits_per_dim(x, None, seeded(1)), here.rate_bits(x)]
        for a, b in zip(found, want):
            torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pseudo_inputs": 0}, "pseudo_inputs=0.*1 or more"),
        ({"posterior": "point"}, "posterior=point with prior=vamp.*gaussian"),
        ({"free_bits": 0.5}, r"free_bits=0\.5 with prior=vamp"),
        ({"prior": "vampire"}, "Unknown prior 'vampire'.*Did you mean 'vamp'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(VerisimError, match=message):
        made(**settings)


def test_without_it_nothing_changes():
    """A model with prior "normal" has the parameters and draws the random numbers it had: its loss is the closed KL's."""
    model, x = made(prior="normal", kl_warmup=0), images(4)
    assert not [k for k in model.state_dict() if "pseudo" in k] and model.net.pseudo is None
    torch.manual_seed(1)
    loss, parts = model.training_loss(x, None)
    torch.testing.assert_close(parts["kl"], model.net.encode(x).kl().sum(1))
    torch.testing.assert_close(loss, (parts["nll"] + parts["kl"]) / 256)


def fitted(model: ConvVAE, x: Tensor, steps: int) -> float:
    """Mean bits per dimension of x after some steps on it."""
    model.prepare(x)
    optimizer = model.optimizer()
    for _ in range(steps):
        model.begin_step()
        loss, _ = model.training_loss(x[torch.randint(len(x), (32,))], None)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        model.end_step()
    model.eval()
    model.finalise(x, None)
    model.configure_sampling(prior="vamp" if model.net.pseudo is not None else "normal")
    return float(model.bits_per_dim(x[:128], generator=seeded()).mean())


def test_training_learns_two_kinds_of_images():
    """Bright and dark images: samples of the prior are of both kinds, and their number of bits is below noise's 8."""
    kinds = torch.where(torch.arange(256).view(-1, 1, 1, 1) % 2 == 0, 0.5, -0.5)
    x = kinds + 0.1 * torch.rand(256, 1, 8, 8, generator=seeded())
    torch.manual_seed(0)
    model = ConvVAE(ImageSpec((8, 8)), **{**VAMP, "kl_warmup": 20, "pseudo_inputs": 8})
    bits = fitted(model, x, 160)
    mean = model.sample(64, generator=seeded(2)).flatten(1).mean(1)
    near = ((mean.abs() - 0.5).abs() < 0.2).float().mean()
    assert bits < 6.5 and float(near) > 0.9 and 16 <= int((mean > 0).sum()) <= 48
