"""KL, bounds, observation models and ex-post density of the VAEs: exact sums, closed forms, margins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, MultivariateNormal, Normal, kl_divergence

from verisim.data.spec import ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.models.autoencoders.conv_vae import ConvVAE
from verisim.models.autoencoders.density import ExPostDensity
from verisim.models.autoencoders.gaussian import (
    importance_bound,
    kl_standard_normal,
    normal_log_density,
)
from verisim.models.autoencoders.likelihoods import (
    LEAST_VARIANCE,
    LIKELIHOODS,
    STEP,
    GaussianObservation,
    LogisticObservation,
    log_laplace_interval,
    log_normal_interval,
    to_level,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kl_equals_torch_distributions():
    """The closed form with its sign right (source 001 prints it with the wrong one)."""
    mean, log_variance = torch.randn(5, 7, generator=seeded()), torch.randn(5, 7, generator=seeded(1))
    want = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_standard_normal(mean, log_variance), want, rtol=1e-5, atol=1e-6)


def test_kl_pulls_to_the_standard_normal():
    """Its gradient vanishes at mu = 0, sigma = 1 only, and points there."""
    mean = torch.tensor([0.0, 2.0, -2.0], requires_grad=True)
    log_variance = torch.tensor([0.0, 1.0, -1.0], requires_grad=True)
    kl_standard_normal(mean, log_variance).sum().backward()
    assert mean.grad.tolist() == [0, 2, -2]
    assert log_variance.grad[0] == 0 and log_variance.grad[1] > 0 and log_variance.grad[2] < 0


def linear_gaussian() -> tuple[Tensor, Tensor, float, Tensor, Tensor]:
    """x = W z + noise: data x, W, sigma, exact log p(x), and exact posterior covariance."""
    w, sigma = torch.randn(6, 2, generator=seeded(3)).double(), 0.7
    z = torch.randn(40, 2, generator=seeded(4)).double()
    x = z @ w.T + sigma * torch.randn(40, 6, generator=seeded(5)).double()
    marginal = MultivariateNormal(torch.zeros(6).double(), w @ w.T + sigma**2 * torch.eye(6).double())
    precision = torch.eye(2).double() + w.T @ w / sigma**2
    return x, w, sigma, marginal.log_prob(x), torch.linalg.inv(precision)


def bound(x: Tensor, w: Tensor, sigma: float, mean: Tensor, log_variance: Tensor, k: int) -> Tensor:
    """The importance bound of the linear-Gaussian model with a diagonal q, (B,)."""
    weights = []
    g = seeded(6)
    for _ in range(k):
        z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=g).double()
        log_px = Normal(z @ w.T, sigma).log_prob(x).sum(1)
        log_pz = Normal(0.0, 1.0).log_prob(z).sum(1)
        weights.append(log_px + log_pz - normal_log_density(z, mean, log_variance))
    return importance_bound(torch.stack(weights))


def test_bound_lies_below_the_evidence_and_tightens_with_samples():
    """ELBO < IWAE(10) < IWAE(200) <= log p(x) where log p(x) is known, for a q that is not exact."""
    x, w, sigma, truth, covariance = linear_gaussian()
    mean = x @ w @ covariance.T / sigma**2
    log_variance = covariance.diagonal().log().expand(len(x), 2) + 0.5
    one, ten, many = (float(bound(x, w, sigma, mean, log_variance, k).mean()) for k in (1, 10, 200))
    assert one < ten < many < float(truth.mean()) + 0.02
    assert float(truth.mean()) - many < 0.02 < float(truth.mean()) - one


def test_bound_is_exact_for_the_exact_posterior():
    """With q(z | x) = p(z | x) every weight is p(x): no slack, whatever the draw."""
    x, w, sigma, _, _ = linear_gaussian()
    w = torch.linalg.qr(w)[0]  # orthogonal columns: the posterior is diagonal
    marginal = MultivariateNormal(torch.zeros(6).double(), w @ w.T + sigma**2 * torch.eye(6).double())
    variance = torch.full((len(x), 2), 1 / (1 + 1 / sigma**2)).double()
    mean = x @ w / sigma**2 * variance
    got = bound(x, w, sigma, mean, variance.log(), 1)
    torch.testing.assert_close(got, marginal.log_prob(x), rtol=1e-6, atol=1e-6)


ALL_LEVELS = (-1 + STEP * torch.arange(256)).view(256, 1, 1, 1)  # one 1x1 image per grey value


@pytest.mark.parametrize("name", ["sigma", "laplace", "discretised_logistic"])
@pytest.mark.parametrize("mean", [-5.0, -1.0, -0.3, 0.0017, 1.0, 40.0])
@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 1.0])
def test_probabilities_of_all_grey_values_sum_to_one(name, mean, log_scale):
    """A proper likelihood of 8-bit images, also for means far outside and scales below one grey value."""
    observation = LIKELIHOODS[name](1, "learned")
    with torch.no_grad():
        for p in observation.parameters():
            p.fill_(2 * log_scale if name == "sigma" else log_scale)
    log_p = observation.log_prob(torch.full_like(ALL_LEVELS, mean), ALL_LEVELS).detach()
    assert log_p.dtype == torch.float64 and torch.isfinite(log_p).all()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_logistic_training_loss_equals_its_log_probability():
    """float32 training and float64 evaluation are one function; all gradients finite in the far tail."""
    observation = LogisticObservation(2)
    x, out = torch.rand(3, 2, 4, 4, generator=seeded()) * 2 - 1, torch.randn(3, 2, 4, 4, generator=seeded(1))
    out = (50 * out).requires_grad_()
    nll = observation.nll(out, x)
    torch.testing.assert_close(nll.double(), -observation.log_prob(out, x), rtol=1e-4, atol=1e-3)
    nll.sum().backward()
    assert torch.isfinite(out.grad).all() and torch.isfinite(observation.log_scale.grad).all()


def test_laplace_is_the_absolute_error():
    """|x - out| / b + log 2 b against torch.distributions; scale 1 when fixed, the mean error when optimal."""
    x, out = torch.rand(3, 2, 4, 4, generator=seeded()) * 2 - 1, torch.randn(3, 2, 4, 4, generator=seeded(1))
    error = (x - out).abs()
    fixed = LIKELIHOODS["laplace"](2, "fixed")
    torch.testing.assert_close(fixed.nll(out, x), error.flatten(1).sum(1) + 32 * math.log(2))
    optimal = LIKELIHOODS["laplace"](2, "optimal")
    want = -Laplace(out, error.mean()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(optimal.nll(out, x), want)
    assert float(optimal.scale) == pytest.approx(0.95 + 0.05 * float(error.mean()), rel=1e-6)
    optimal.calibrate(torch.tensor(0.02))
    assert float(optimal.eval().b()) == pytest.approx(0.1)
    made = optimal.noisy(torch.zeros(1, 1, 100, 100), seeded())
    assert float(made.std()) == pytest.approx(math.sqrt(2) * 0.1, rel=0.03)


def test_laplace_interval_is_exact_in_the_tails():
    """Across the middle as torch's distribution function says; at 800 scales, where that is 1 - 1; all of it is 1."""
    low, high = torch.tensor([-0.4, -3.0, 0.2]).double(), torch.tensor([0.3, -1.0, 2.0]).double()
    cdf = Laplace(torch.zeros(()).double(), 1.0).cdf
    torch.testing.assert_close(log_laplace_interval(low, high), (cdf(high) - cdf(low)).log())
    far = log_laplace_interval(torch.tensor([800.0]).double(), torch.tensor([801.0]).double())
    assert float(far) == pytest.approx(-800 + math.log(0.5 * (1 - math.exp(-1))))
    ends = torch.tensor([torch.inf]).double()
    assert float(log_laplace_interval(-ends, ends)) == 0


def test_normal_interval_is_exact_in_the_tails():
    """log(Phi(b) - Phi(a)) at 30 sigma, where the naive difference is log 0; symmetric; all of it is 1."""
    a, b = torch.tensor([30.0]).double(), torch.tensor([30.1]).double()
    right, left = log_normal_interval(a, b), log_normal_interval(-b, -a)
    want = torch.special.log_ndtr(-a) + torch.log1p(
        -(torch.special.log_ndtr(-b) - torch.special.log_ndtr(-a)).exp()
    )
    torch.testing.assert_close(right, left)
    torch.testing.assert_close(right, want)
    low = torch.tensor([-0.4]).double()
    middle = (Normal(0.0, 1.0).cdf(b / 30) - Normal(0.0, 1.0).cdf(low)).log()
    torch.testing.assert_close(log_normal_interval(low, b / 30), middle, rtol=1e-6, atol=1e-8)
    everything = log_normal_interval(torch.tensor([-torch.inf]).double(), torch.tensor([torch.inf]).double())
    assert float(everything) == 0


def test_rounding_to_levels():
    """Grey values stay themselves, others go to the nearest."""
    torch.testing.assert_close(to_level(ALL_LEVELS), ALL_LEVELS, rtol=0, atol=2e-7)
    assert float((to_level(ALL_LEVELS + 0.4 * STEP) - ALL_LEVELS).abs()[:-1].max()) < 1e-6


def test_optimal_sigma_is_the_mean_squared_error():
    """sigma-VAE: the closed form beats every other sigma, and the loss is then D/2 (1 + log 2 pi MSE)."""
    x, out = torch.rand(4, 1, 8, 8, generator=seeded()), torch.rand(4, 1, 8, 8, generator=seeded(1))
    mse = (x - out).square().mean()
    optimal = float(GaussianObservation(1, "optimal").nll(out, x).mean())
    assert optimal == pytest.approx(float(32 * (1 + (2 * math.pi * mse).log())), rel=1e-5)
    learned = GaussianObservation(1, "learned")
    for factor in (0.5, 0.9, 1.1, 2.0):
        learned.log_variance.data = (factor * mse).log()
        assert float(learned.nll(out, x).mean()) > optimal
    learned.log_variance.data = mse.log()
    loss = learned.nll(out, x).mean()
    assert float(loss) == pytest.approx(optimal, rel=1e-5)
    assert float(torch.autograd.grad(loss, learned.log_variance)[0].abs()) < 1e-3


def test_sigma_never_falls_below_rounding():
    """A perfect reconstruction must not make the density infinite."""
    observation, x = GaussianObservation(1), torch.zeros(2, 1, 8, 8)
    assert torch.isfinite(observation.nll(x, x)).all()
    observation.calibrate(torch.tensor(0.0))
    assert float(observation.sigma2()) == pytest.approx(LEAST_VARIANCE)


def banana(n: int, seed: int = 0) -> Tensor:
    """Two separate, tilted clusters off the origin: an aggregate posterior that N(0, I) misses."""
    g = seeded(seed)
    side = torch.randint(2, (n, 1), generator=g) * 2.0 - 1
    a = torch.randn(n, 1, generator=g)
    b = a + 0.2 * torch.randn(n, 1, generator=g)
    return torch.cat([a * 0.3 + 2 * side, b * 0.3 + side], dim=1)


def coverage(samples: Tensor, truth: Tensor) -> float:
    """Share of truth that has a sample within 0.25."""
    return float((torch.cdist(truth, samples).min(1).values < 0.25).float().mean())


def stray(samples: Tensor, truth: Tensor) -> float:
    """Mean distance of a sample to the nearest truth."""
    return float(torch.cdist(samples, truth).min(1).values.mean())


def test_ex_post_density_covers_the_aggregate_posterior():
    """Mixture before Gaussian before N(0, I), with margins, in likelihood and in where samples fall."""
    train, test = banana(600), banana(400, seed=1)
    density = ExPostDensity(2, 4)
    density.fit(train, torch.full_like(train, 1e-3))
    group = torch.zeros(400, dtype=torch.long)
    drawn = {p: density.sample(p, group, seeded()) for p in ("normal", "gaussian", "mixture")}
    nats = {p: float(density.log_density(p, group, test).mean()) for p in drawn}
    assert nats["mixture"] > nats["gaussian"] + 0.5 > nats["normal"] + 1.5
    astray = {p: stray(z, test) for p, z in drawn.items()}
    assert astray["mixture"] < 0.3 * astray["gaussian"] < 0.5 * astray["normal"]
    assert coverage(drawn["mixture"], test) > 0.9 > coverage(drawn["normal"], test) + 0.2


def test_gaussian_moments_include_the_posterior_variance():
    """Mean and covariance of the aggregate posterior: Cov(mu) + E[diag sigma^2], exactly."""
    mean = torch.randn(50, 3, generator=seeded())
    variance = torch.rand(50, 3, generator=seeded(1))
    density = ExPostDensity(3, 2)
    density.fit(mean, variance)
    factor = density.factors[0, 0]
    want = mean.T.cov(correction=0) + torch.diag(variance.mean(0))
    torch.testing.assert_close(factor @ factor.T, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(density.means[0, 0], mean.mean(0), rtol=1e-4, atol=1e-5)
    z, group = torch.randn(5, 3, generator=seeded(2)), torch.zeros(5, dtype=torch.long)
    truth = MultivariateNormal(density.means[0, 0].double(), scale_tril=factor.double())
    torch.testing.assert_close(density.log_density("gaussian", group, z), truth.log_prob(z.double()))


def test_mixture_draws_match_its_density():
    """Samples and log density are one distribution: E[-log p] by sampling has the analytic mean of z."""
    density = ExPostDensity(2, 4)
    density.fit(banana(600), torch.full((600, 2), 1e-3))
    z = density.sample("mixture", torch.zeros(40_000, dtype=torch.long), seeded())
    want = (density.log_weights[0].exp()[:, None] * density.means[0, 1:]).sum(0)
    torch.testing.assert_close(z.mean(0), want, rtol=0, atol=0.04)
    grid = torch.cartesian_prod(*[torch.linspace(-6, 6, 301)] * 2)
    log_p = density.log_density("mixture", torch.zeros(len(grid), dtype=torch.long), grid)
    assert float(log_p.exp().sum()) * 0.04**2 == pytest.approx(1, abs=0.01)


def test_few_images_get_fewer_components_and_rare_classes_the_joint_density():
    """Ten components on twenty images would learn them by heart; a class of three has no covariance."""
    mean = torch.randn(20, 2, generator=seeded())
    label = torch.tensor([0] * 17 + [1] * 3)
    density = ExPostDensity(2, 10, num_classes=2)
    density.fit(mean, torch.ones_like(mean), label)
    assert int((density.log_weights[2] > -torch.inf).sum()) == 3
    assert torch.equal(density.means[1], density.means[2])
    assert not torch.equal(density.means[0], density.means[2])


def test_density_says_when_it_cannot():
    """One image, latents that are not finite, or sampling before fitting: an error with the remedy."""
    density = ExPostDensity(2, 2)
    with pytest.raises(VerisimError, match="at least 2 images"):
        density.fit(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(VerisimError, match="finite"):
        density.fit(torch.full((5, 2), torch.nan), torch.ones(5, 2))
    with pytest.raises(VerisimError, match=r"prior=mixture needs the latent density.*prior=normal"):
        density.resolve("mixture")
    with pytest.raises(VerisimError, match="Unknown prior 'flow'"):
        density.resolve("flow")
    assert density.resolve("auto") == "normal"


@pytest.mark.parametrize("num_classes", [0, 2])
def test_finalised_model_travels_through_its_extra_state(num_classes):
    """Weights plus extra_state() rebuild the same sampler; other settings are refused."""
    torch.manual_seed(0)
    spec, tiny = ImageSpec((16, 16)), {"width": 8, "latent": 2, "components": 2}
    x = torch.rand(40, 1, 16, 16, generator=seeded()) * 2 - 1
    model, copy = ConvVAE(spec, num_classes, **tiny), ConvVAE(spec, num_classes, **tiny)
    shapes = {k: v.shape for k, v in model.extra_state().items()}
    model.finalise(x, torch.arange(40) % 2 if num_classes else None)
    assert {k: v.shape for k, v in model.extra_state().items()} == shapes
    copy.net.load_state_dict(model.sampling_net.state_dict())
    copy.load_extra_state(model.extra_state())
    one, two = (m.sample(5, generator=seeded(3)) for m in (model, copy))
    assert torch.equal(one, two)
    copy.configure_sampling(prior="normal")
    assert not torch.equal(one, copy.sample(5, generator=seeded(3)))
    with pytest.raises(CheckpointError, match="does not fit"):
        ConvVAE(spec, num_classes, width=8, latent=3, components=2).load_extra_state(model.extra_state())


def test_finalise_sets_sigma_to_the_training_error():
    """After finalise the closed-form sigma is that of the averaged network on all training images."""
    torch.manual_seed(0)
    model = ConvVAE(ImageSpec((16, 16)), width=8, latent=2, components=2)
    model.enable_ema(0.9)
    x = torch.rand(40, 1, 16, 16, generator=seeded()) * 2 - 1
    model.finalise(x, None)
    z = model.encode(x)
    around = float((model.decode(z) - x).square().mean())
    assert float(model.sampling_net.observation.variance) == pytest.approx(around, rel=0.1)


def test_one_training_image_leaves_the_standard_normal():
    """Finishing a training on one image must not fail: there is no density to fit."""
    model = ConvVAE(ImageSpec((16, 16)), width=8, latent=2, components=2)
    model.finalise(torch.zeros(1, 1, 16, 16), None)
    assert model.density.resolve("auto") == "normal"
    assert model.sample(1).shape == (1, 1, 16, 16)
