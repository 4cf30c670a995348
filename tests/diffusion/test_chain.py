"""The bound of the discrete chain against closed forms for Gaussian data.

For N(m, d^2) the best denoiser is affine, so every term that is quadratic in (x0, noise) has its exact
expectation over the four points x0 = m +- d, noise = +-1: nothing there is Monte Carlo.
"""

import math

import pytest
import torch

from verisim.diffusion import chain
from verisim.diffusion.chain import ancestral, chain_bound, fixed_variance, variances
from verisim.diffusion.likelihood import quantise
from verisim.diffusion.oracles import Mixture, gaussian
from verisim.diffusion.samplers import ddpm
from verisim.diffusion.schedules import TABLES, karras, vp_linear, vp_linear_table
from verisim.errors import VerisimError

STEPS = [1, 2, 3, 10, 50, 250, 999, 1000]
SHAPES = [(4, 1), (4, 1, 3, 2), (4, 1, 2, 2, 2)]
M, D = 0.1, 0.6


def four_points(shape, monkeypatch):
    """x0 = M +- D for every sign of the noise, which is +-1 as well."""
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    wide = (4, *[1] * (len(shape) - 1))
    monkeypatch.setattr(chain, "draw_noise", lambda x, g: noise.view(wide).expand_as(x))
    return M + D * sign.view(wide).expand(shape)


def best(sigmas, widen=1.0, m=M, d=D):
    """The optimal denoiser with the optimal variance of N(m, d^2): s^2 (1 - r) + (1 - r)^2 Var[x0 | x_t]."""
    data = gaussian(m, d)
    t, s = sigmas[:-1], sigmas[1:]
    r = (s / t) ** 2
    optimum = s**2 * (1 - r) + (1 - r) ** 2 * (d * t) ** 2 / (d**2 + t**2)
    lower, upper = variances(sigmas)
    v = ((optimum * widen).log() - lower) / (upper - lower)

    def reverse(x, sigma):
        i = int((t - float(sigma[0])).abs().argmin())
        return data.denoise(x, sigma), torch.full_like(x, float(v[i]))

    return reverse


def closed_form(sigmas):
    """H(N(M, D^2)) + KL(N(M, D^2 + t^2) || N(0, 1 + t^2)), in bits: what the bound is when p is exact."""
    total, own = 1 + float(sigmas[0]) ** 2, D**2 + float(sigmas[0]) ** 2
    prior = 0.5 * ((own + M**2) / total - 1 - math.log(own / total))
    return (0.5 * math.log(2 * math.pi * math.e * D**2) + prior) / math.log(2)


@pytest.mark.parametrize(
    ("n", "shape"),  # the long chains in 2D only
    [(n, shape) for n in STEPS[1:] for shape in SHAPES if n <= 50 or len(shape) == 4],
)
def test_the_bound_is_the_entropy_where_the_chain_is_exact(n, shape, monkeypatch):
    """With the optimal mean and variance every step is exact: the bound is tight at any number of steps."""
    sigmas = vp_linear(n)
    x = four_points(shape, monkeypatch)
    bound = chain_bound(best(sigmas), x, sigmas, grey_values=False)
    assert float(bound.total.mean()) == pytest.approx(closed_form(sigmas), rel=1e-9)
    assert bound.steps.shape == (4, n - 1)
    torch.testing.assert_close(bound.total, bound.prior + bound.steps.sum(1) + bound.last)


@pytest.mark.parametrize("wrong", ["mean", "narrow", "wide"])
def test_control_a_wrong_chain_is_not_tight(wrong, monkeypatch):
    """A mean off by a tenth or a variance off by a factor of 2 costs bits."""
    sigmas = vp_linear(50)
    x = four_points((4, 1, 2, 2), monkeypatch)
    reverse = best(sigmas, {"mean": 1.0, "narrow": 0.5, "wide": 2.0}[wrong])
    if wrong == "mean":
        right = reverse
        reverse = lambda y, s: (right(y, s)[0] + 0.1, right(y, s)[1])  # noqa: E731
    assert float(chain_bound(reverse, x, sigmas, grey_values=False).total.mean()) > closed_form(sigmas) + 0.05


@pytest.mark.parametrize("n", [2, 10, 1000])
def test_steps_of_the_fixed_variance_are_differences_of_snr(n, monkeypatch):
    """With beta-tilde L = (1/s^2 - 1/t^2) ||x0 - D||^2 / 2 (Kingma 2021, eq. 13), in expectation d^2 t^2 / (d^2 + t^2)."""
    sigmas = vp_linear(n)
    x = four_points((4, 1), monkeypatch)
    bound = chain_bound(fixed_variance(gaussian(M, D).denoise), x, sigmas, grey_values=False)
    t, s = sigmas[:-2], sigmas[1:-1]
    expected = 0.5 * (s**-2 - t**-2) * (D * t) ** 2 / (D**2 + t**2) / math.log(2)
    torch.testing.assert_close(bound.steps.mean(0), expected, rtol=1e-9, atol=0)


def test_terms_are_zero_for_the_true_image_and_never_negative(monkeypatch):
    """Spec 003, 16-A: KL = 0 exactly when the mean is built from the true x0 with beta-tilde, else >= 0."""
    sigmas = vp_linear(100)
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    true = chain_bound(fixed_variance(lambda y, s: x), x, sigmas, grey_values=False)
    assert float(true.steps.abs().max()) < 1e-12
    for v in (0.0, 0.5, 1.0):
        for wrong in (x, 0 * x, -x):
            bound = chain_bound(fixed_variance(lambda y, s, w=wrong: w, v), x, sigmas, grey_values=False)
            assert float(bound.steps.min()) > -1e-12 and float(bound.prior.min()) >= 0


@pytest.mark.parametrize("name", TABLES)
def test_variances_are_those_of_the_papers(name):
    """beta-tilde = (1 - a_s) / (1 - a_t) beta and beta at the scale of x_s; the last is clipped to beta-tilde_2."""
    table = TABLES[name]()
    lower, upper = variances(torch.cat([table.flip(0), torch.zeros(1, dtype=torch.float64)]))
    a = 1 / (1 + table**2)  # alpha_bar 1...T
    before = torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]])
    beta = 1 - a / before
    tilde = (1 - before) / (1 - a) * beta
    tilde[0] = tilde[1]
    scale = before.clone()  # x = x_VP / sqrt(alpha_bar_s)
    scale[0] = 1.0
    torch.testing.assert_close(upper.exp().flip(0), beta / scale, rtol=1e-7, atol=0)
    torch.testing.assert_close(lower.exp().flip(0)[1:], (tilde / scale)[1:], rtol=1e-7, atol=0)
    assert float(lower[-1].exp()) == pytest.approx(float(tilde[1]), rel=1e-7)


def test_prior_of_the_linear_schedule_is_nothing():
    """Spec 003, section 2.1: L_T < 1e-3 nats per dimension for linear betas and T = 1000, even at +-1."""
    sigmas = vp_linear(1000)[[0, 1, -1]]  # the same first level
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    prior = chain_bound(fixed_variance(lambda y, s: y), x, sigmas).prior
    alpha_bar = 1 / (1 + float(vp_linear_table()[-1]) ** 2)
    by_hand = 0.5 * (alpha_bar + (1 - alpha_bar) - 1 - math.log(1 - alpha_bar))
    assert float(prior) * math.log(2) == pytest.approx(by_hand, rel=1e-6) and 0 < by_hand < 1e-3


def test_the_bound_of_grey_values_is_above_the_truth_and_close():
    """8-bit data: -log2 of the probability of each grey value, from the data's own distribution function."""
    data = gaussian(0.1, 0.25)
    x = data.quantiles(1024)[torch.randperm(1024, generator=torch.Generator().manual_seed(0))]
    x = quantise(x.view(1, 1, 32, 32)).float()
    half = 1 / 255
    truth = -(data.cdf(x + half) - data.cdf(x - half)).log2().mean()
    sigmas = vp_linear(1000)

    def excess(reverse):
        bound = chain_bound(reverse, x, sigmas, generator=torch.Generator().manual_seed(1))
        return float(bound.total.mean() - truth)

    assert 0 < excess(best(sigmas, m=0.1, d=0.25)) < 0.05
    assert (
        excess(fixed_variance(data.denoise)) > 0.5
    )  # the last steps need the variance (Nichol 2021, figure 2)
    assert excess(best(sigmas, m=0.3, d=0.25)) > 0.4  # KL of a mean off by 0.2: 0.46 bits


def test_learned_variance_has_the_lowest_bound_at_fifty_steps(monkeypatch):
    """Spec 003, section 2.2: with 50 strided steps the best v beats both beta-tilde and beta."""
    sigmas = vp_linear(50)
    x = four_points((4, 1, 2, 2), monkeypatch)
    data = gaussian(M, D)
    learned, lower, upper = (
        float(chain_bound(reverse, x, sigmas, grey_values=False).total.mean())
        for reverse in (best(sigmas), fixed_variance(data.denoise), fixed_variance(data.denoise, 1.0))
    )
    assert learned < upper - 0.01 and learned < lower - 0.01


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_ancestral_with_the_least_variance_is_ddpm(n, shape):
    """v = 0 is the `ddpm` sampler on the same noise; 1D, 2D and 3D."""
    data, sigmas = Mixture((-0.6, 0.5), (0.1, 0.2), (0.4, 0.6)), vp_linear(n)
    x = float(sigmas[0]) * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, b = (torch.Generator().manual_seed(1) for _ in range(2))
    got = ancestral(fixed_variance(data.denoise), x, sigmas, generator=a)
    torch.testing.assert_close(got, ddpm(data.denoise, x, sigmas, generator=b), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 10, 50, 250])
def test_ancestral_with_the_best_variance_is_exact_at_any_number_of_steps(n):
    """The chain with the optimal variance draws N(M, D^2) itself; beta-tilde is too narrow at few steps."""
    sigmas = vp_linear(n)
    g = torch.Generator().manual_seed(0)
    x = float(sigmas[0]) * torch.randn(20_000, 1, dtype=torch.float64, generator=g)
    learned = best(sigmas)
    last = (D * float(sigmas[-2])) ** 2 / (D**2 + float(sigmas[-2]) ** 2)  # the last step adds no noise
    y = ancestral(learned, x, sigmas, generator=g)
    std = math.sqrt(D**2 - last)
    assert float(y.mean()) == pytest.approx(M, abs=5 * D / math.sqrt(20_000))
    assert float(y.std()) == pytest.approx(std, abs=5 * D / math.sqrt(40_000))
    if 2 < n <= 10:
        narrow = ancestral(fixed_variance(gaussian(M, D).denoise), x, sigmas, generator=g)
        assert float(narrow.std()) < std - 0.01


def test_callback_and_bad_input():
    """The callback sees every step; a bad prior, a bad schedule and NaN are refused in one sentence."""
    seen = []
    reverse = fixed_variance(gaussian(0.0, 1.0).denoise)
    ancestral(reverse, torch.ones(1, 1), karras(4), callback=seen.append)
    assert [s.i for s in seen] == [0, 1, 2, 3]
    with pytest.raises(VerisimError, match="prior_std = 0"):
        chain_bound(reverse, torch.ones(1, 1), karras(4), prior_std=0.0)
    with pytest.raises(VerisimError, match="end in exactly 0"):
        chain_bound(reverse, torch.ones(1, 1), torch.tensor([2.0, 1.0], dtype=torch.float64))
    with pytest.raises(VerisimError, match=r"NaN or Inf for 1 of 2 images at noise level 80"):
        nan = torch.tensor([[0.0], [math.nan]])
        ancestral(fixed_variance(lambda x, s: nan), torch.ones(2, 1), karras(4))
