"""Equations that the literature prints wrong, as controls: each fails where the corrected form is exact.

Oracle: data N(m, d^2), whose optimal eps is known. The chains here are written out in the literature's own
variance-preserving symbols (a = alpha_bar), so that a misprint can be put in exactly as printed.
"""

import math

import pytest
import torch

from verisim.diffusion.chain import step_nats, variances
from verisim.diffusion.guidance import classifier_free, classifier_guided
from verisim.diffusion.oracles import gaussian
from verisim.diffusion.parametrisation import Parametrisation
from verisim.diffusion.samplers import ddpm, euler, renoise
from verisim.diffusion.schedules import (
    vp_cosine_table,
    vp_linear,
    vp_linear_table,
    vp_scaled_linear_table,
)

M, D = 0.3, 0.2
T = 1000
TABLE = vp_linear_table()
A = torch.cat([torch.ones(1, dtype=torch.float64), 1 / (1 + TABLE**2)]).tolist()  # alpha_bar_0...T
BETA = [0.0] + [1 - A[t] / A[t - 1] for t in range(1, T + 1)]


def eps_mean(m, t, d=D):
    """The optimal eps at x_t = its mean m and its slope in x_t, for N(M, d^2): eps = e + k (x_t - m)."""
    total = A[t] * d**2 + 1 - A[t]
    k = math.sqrt(1 - A[t]) / total
    return k * (m - math.sqrt(A[t]) * M), k


def chain(step):
    """Exact (mean, variance) of an affine reverse chain x_s = p x_t + q eps + noise; step(t) = p, q, variance."""
    m, var = 0.0, 1.0
    for t in range(T, 0, -1):
        p, q, noise = step(t)
        e, k = eps_mean(m, t)
        m, var = p * m + q * e, (p + q * k) ** 2 * var + (noise if t > 1 else 0.0)
        if not (math.isfinite(var) and var < 1e30):
            return t, math.inf
    return m, var


def mean_of_eq_17_4(t, prefactor):
    return prefactor, -prefactor * BETA[t] / math.sqrt(1 - A[t]), BETA[t]


def test_prefactor_of_the_reverse_mean():
    """Spec 003, ERR-1 (eq. 16.4): 1 / sqrt(alpha_t) gives the data within 2 %; printed with alpha_bar it diverges."""
    m, var = chain(lambda t: mean_of_eq_17_4(t, 1 / math.sqrt(1 - BETA[t])))
    assert m == pytest.approx(0.3, abs=1e-5) and var == pytest.approx(0.0400, rel=0.02)
    ours = ddpm(
        gaussian(M, D).denoise,
        float(TABLE[-1]) * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)),
        vp_linear(T),
        generator=torch.Generator().manual_seed(1),
    )
    assert float(ours.mean()) == pytest.approx(M, rel=0.02) and float(ours.var()) == pytest.approx(
        D**2, rel=0.04
    )
    died, var = chain(lambda t: mean_of_eq_17_4(t, 1 / math.sqrt(A[t])))
    assert var == math.inf and T - died < 20  # within some 14 of the 1000 steps


def posterior(t, misprinted):
    """Weights of x0 and x_t in the posterior mean, eq. 2.13; printed with alpha_bar_t under the second root."""
    second = A[t] if misprinted else 1 - BETA[t]
    w0 = math.sqrt(A[t - 1]) * BETA[t] / (1 - A[t])
    return w0, math.sqrt(second) * (1 - A[t - 1]) / (1 - A[t])


def test_second_coefficient_of_the_posterior_mean():
    """Eq. 2.13: E[x_{t-1} | x0] = sqrt(a_{t-1}) x0, to 1e-12 for all t; 0.28033 at t = 500 (counted from 0), printed 0.08079."""
    for t in range(2, T + 1):
        w0, wt = posterior(t, misprinted=False)
        assert w0 + wt * math.sqrt(A[t]) == pytest.approx(math.sqrt(A[t - 1]), abs=1e-12)
    right, printed = (w0 + wt * math.sqrt(A[501]) for w0, wt in (posterior(501, k) for k in (False, True)))
    assert right == pytest.approx(0.28033, abs=5e-6) and printed == pytest.approx(0.08079, abs=5e-6)


@pytest.mark.parametrize("misprinted", [False, True])
def test_sampling_with_the_posterior_mean(misprinted):
    """The whole chain with eq. 2.13: within 2 % of the data; as printed it is far off."""

    def step(t):
        w0, wt = posterior(t, misprinted)
        tilde = (1 - A[t - 1]) / (1 - A[t]) * BETA[t]
        return wt + w0 / math.sqrt(A[t]), -w0 * math.sqrt(1 - A[t]) / math.sqrt(A[t]), tilde

    m, var = chain(step)
    good = abs(m - M) < 0.02 * M and abs(math.sqrt(var) - D) < 0.02 * D
    assert good is not misprinted


@pytest.mark.parametrize("misprinted", [False, True])
def test_x0_from_eps(misprinted):
    """Eq. 2.16 prints the reverse mean in place of x0: exact to 1e-14 as corrected, an error of order 1 as printed."""
    t, x0, eps = 700, 0.7, -1.3
    x = math.sqrt(A[t]) * x0 + math.sqrt(1 - A[t]) * eps
    if misprinted:
        got = (x - BETA[t] / math.sqrt(1 - A[t]) * eps) / math.sqrt(1 - BETA[t])
        assert abs(got - x0) > 0.5
        return
    assert (x - math.sqrt(1 - A[t]) * eps) / math.sqrt(A[t]) == pytest.approx(x0, abs=1e-13)
    s = TABLE[t - 1 : t]
    ours = Parametrisation("epsilon").denoise(
        lambda x_in, c, label: torch.full_like(x_in, eps),
        torch.full((1, 1), x0, dtype=torch.float64) + s * eps,
        s,
    )
    assert float(ours) == pytest.approx(x0, abs=1e-12)


def test_ddim_coefficient_of_the_predicted_noise():
    """Source 000, eq. 2.16 prints sqrt(a_{t-1}) before the noise; sqrt(1 - a_{t-1}) samples, the print does not."""

    def step(t, misprinted):
        p = math.sqrt(A[t - 1] / A[t])
        noise = math.sqrt(A[t - 1]) if misprinted else math.sqrt(1 - A[t - 1])
        return p, noise - p * math.sqrt(1 - A[t]), 0.0

    m, var = chain(lambda t: step(t, False))
    x = torch.zeros(1, 1, dtype=torch.float64)
    ours = float(euler(gaussian(M, D).denoise, x, vp_linear(T)))
    assert m == pytest.approx(ours, abs=1e-9) and math.sqrt(var) == pytest.approx(D, rel=0.02)
    m, var = chain(lambda t: step(t, True))
    assert not abs(m - M) < 0.1 * M


def test_reverse_variance_without_beta():
    """Source 000, erratum 2: (1 - a_{t-1}) / (1 - a_t) lacks beta_t; a chain with it ends far too wide."""
    for tilde, good in ((lambda t: BETA[t], True), (lambda t: 1.0, False)):

        def step(t, factor=tilde):
            p, q, _ = mean_of_eq_17_4(t, 1 / math.sqrt(1 - BETA[t]))
            return p, q, (1 - A[t - 1]) / (1 - A[t]) * factor(t)

        _, var = chain(step)
        assert (abs(math.sqrt(var) - D) < 0.02 * D) is good


def test_forward_recursion():
    """Source 000, erratum 3: two steps of noise make sqrt(1 - alpha_t alpha_{t-1}), not sqrt(1 - alpha_t) alpha_{t-1}."""
    a, b = 1 - BETA[500], 1 - BETA[499]
    two_steps = a * (1 - b) + (1 - a)  # variance of sqrt(a) (sqrt(1 - b) e1) + sqrt(1 - a) e2
    assert 1 - a * b == pytest.approx(two_steps, rel=1e-12)
    assert (1 - a) * b**2 != pytest.approx(two_steps, rel=0.4)


def test_step_zero_has_no_noise():
    """ERR-3: t = 0 is not a training step. Its noise is 0, and eps cannot be read from x_0."""
    assert A[0] == 1.0 and len(TABLE) == T and float(TABLE[0]) > 0


def test_the_target_is_the_unit_noise_not_the_increment():
    """ERR-6: with the optimal prediction of x_t - x_{t-1} in place of eps the chain does not reach the data."""

    def step(t):  # E[x_t - x_{t-1} | x_t] is affine in eps; as a multiple c of it at unit data
        c = BETA[t] / math.sqrt(1 - A[t])
        p, q, noise = mean_of_eq_17_4(t, 1 / math.sqrt(1 - BETA[t]))
        return p, q * c, noise

    _, var = chain(step)
    assert abs(math.sqrt(var) - D) > D


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_score_and_clean_image_are_not_the_same(sigma):
    """ERR-8: s = (D - x) / sigma^2 is the score (checked by a derivative); the clean image D itself is not."""
    data = gaussian(M, D)
    x = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    log_p = -0.5 * (x - M) ** 2 / (D**2 + sigma**2)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    clean = data.denoise(x.detach(), torch.tensor([sigma], dtype=torch.float64))
    torch.testing.assert_close((clean - x.detach()) / sigma**2, score)
    assert abs(float(clean - score)) > 0.01


# --- guidance ----------------------------------------------------------------------------------------

CLASS = gaussian(0.5, 0.1)
OTHER = gaussian(-0.5, 0.1)


def log_posterior(x, sigma, label):
    """log p(class 1 | x) of noisy images of two equally frequent classes, exact."""
    s = sigma.view(-1, 1) ** 2
    score = [(-0.5 * (x - g.mean) ** 2 / (g.std**2 + s)) for g in (CLASS, OTHER)]
    return torch.log_softmax(torch.stack(score), 0)[0].sum(1)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_classifier_gradient_needs_its_variance(sigma):
    """Eq. 2.21 shifts by grad log p alone; with sigma^2 (Sigma) it is Bayes' rule, without it is not."""
    from verisim.diffusion.oracles import Mixture

    both = Mixture((0.5, -0.5), (0.1, 0.1), (0.5, 0.5))
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    s = torch.full((9,), sigma, dtype=torch.float64)
    label = torch.ones(9, dtype=torch.long)
    truth = CLASS.denoise(x, s)
    ours = classifier_guided(both.denoise, log_posterior, 1.0)(x, s, label)
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)
    y = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(log_posterior(y, s, label).sum(), y)
    printed = both.denoise(x, s) + slope
    assert float((printed - truth).abs().max()) > 0.1


def test_guidance_joins_predictions_not_samples():
    """Eq. 2.24 joins samples x_{t-1}: their own noises then add to (1 + w)^2 + w^2 times the variance of one."""
    w, n = 2.0, 40_000
    g = torch.Generator().manual_seed(0)
    sigmas = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    x = torch.zeros(n, 1, dtype=torch.float64)
    noises = [torch.randn(n, 1, generator=g, dtype=torch.float64) for _ in range(2)]
    std = 1.0 * math.sqrt(1 - 0.25)  # of one step from 2 to 1
    mean = [0.25 * x + 0.75 * c.denoise(x, torch.full((n,), 2.0).double()) for c in (CLASS, OTHER)]
    samples = [m + std * e for m, e in zip(mean, noises)]
    printed = samples[0] + w * (samples[0] - samples[1])
    both = lambda y, s, label: torch.where(label[:, None] == 1, CLASS.denoise(y, s), OTHER.denoise(y, s))  # noqa: E731
    guided = classifier_free(both, 1 + w, 0, limit=None)
    label = torch.ones(n, dtype=torch.long)
    states = []
    ddpm(
        lambda y, s: guided(y, s, label), x, sigmas, generator=g, callback=lambda step: states.append(step.x)
    )
    assert float(states[1].mean()) == pytest.approx(float(printed.mean()), abs=0.03)  # s = 1 + w
    assert float(states[1].var()) == pytest.approx(std**2, rel=0.03)
    assert float(printed.var()) == pytest.approx(((1 + w) ** 2 + w**2) * std**2, rel=0.03)


# --- likelihood and schedules ------------------------------------------------------------------------


def test_direction_of_the_divergence():
    """Eq. 2.29 prints KL(p || q). Its optimum for the variance is too narrow; KL(q || p) has the right one."""
    t, s, d = float(TABLE[2]), float(TABLE[1]), 0.5
    r = (s / t) ** 2
    spread = (1 - r) ** 2 * (d * t) ** 2 / (d**2 + t**2)  # E of the squared distance of the means
    q = s**2 * (1 - r)
    sigmas = torch.cat([TABLE.flip(0), torch.zeros(1, dtype=torch.float64)])
    lower, upper = (float(v[T - 1 - 2]) for v in variances(sigmas))
    v = torch.linspace(-0.5, 1.5, 4001, dtype=torch.float64)
    p = torch.exp(v * upper + (1 - v) * lower)
    printed = 0.5 * (math.log(q) - p.log() - 1 + p / q + spread / q)
    shift = torch.full((len(v), 1), math.sqrt(spread) / (1 - r), dtype=torch.float64)
    ours = step_nats(shift, 0 * shift, v[:, None], sigmas, torch.full((len(v),), T - 1 - 2))
    assert float(p[ours.argmin()]) == pytest.approx(q + spread, rel=2e-3)
    assert float(p[printed.argmin()]) == pytest.approx(q, rel=2e-3)
    assert spread > 0.2 * q


def test_cosine_schedule_is_squared():
    """Eq. 4.4 prints cos without its square: alpha_bar at T / 2 is 0.494, not 0.703; beta_1 = 4.1e-5, beta_T = 0.999."""
    a = 1 / (1 + vp_cosine_table() ** 2)
    assert float(a[499]) == pytest.approx(0.494, abs=5e-4)
    f = lambda t: math.cos((t / T + 0.008) / 1.008 * math.pi / 2)  # noqa: E731
    assert f(500) / f(0) == pytest.approx(0.703, abs=5e-4)
    assert 1 - float(a[0]) == pytest.approx(4.1e-5, rel=0.02)
    assert 1 - float(a[-1] / a[-2]) == pytest.approx(0.999, abs=1e-9)


def test_product_of_alphas_starts_at_one():
    """Eq. 4.3 starts the product at s = 0: alpha_bar_1 would lack nothing but hold one factor too many."""
    assert A[1] == pytest.approx(1 - 1e-4, rel=1e-12)
    assert A[T] == pytest.approx(4.036e-5, rel=1e-3)
    assert 1 / (1 + float(vp_scaled_linear_table()[-1]) ** 2) == pytest.approx(1.423e-4, rel=1e-3)


# --- the re-noising sampler of chapter 4 -------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 10, 50, 250, 999, 1000])
@pytest.mark.parametrize("shape", [(3, 1), (2, 1, 3, 2), (2, 1, 2, 2, 2)])
def test_renoise_with_the_predicted_noise_is_ddim_bit_for_bit(n, shape):
    """Spec 003, section 4.5: `predicted` is DDIM with eta = 0."""
    sigmas, data = vp_linear(n), gaussian(M, D)
    x = float(sigmas[0]) * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(renoise(data.denoise, x, sigmas), euler(data.denoise, x, sigmas))


@pytest.mark.parametrize("n", [2, 3, 10, 50, 250])
def test_renoise_with_fresh_noise_has_its_known_bias(n):
    """The mean is right, the variance follows V -> d^4 V / (d^2 + t^2)^2 + s^2, and is not the posterior's."""
    sigmas, data = vp_linear(n), gaussian(M, D)
    m, var = 0.0, float(sigmas[0]) ** 2
    for t, s in zip(sigmas[:-1].tolist(), sigmas[1:].tolist()):
        k = D**2 / (D**2 + t**2)
        m, var = M + k * (m - M), k**2 * var + s**2
    g = torch.Generator().manual_seed(0)
    x = float(sigmas[0]) * torch.randn(50_000, 1, generator=g, dtype=torch.float64)
    y = renoise(data.denoise, x, sigmas, fresh=True, generator=g)
    assert m == pytest.approx(M, abs=1e-4)
    assert float(y.mean()) == pytest.approx(m, abs=5 * math.sqrt(var / 50_000))
    assert float(y.std()) == pytest.approx(math.sqrt(var), abs=5 * math.sqrt(var / 100_000))
    assert math.sqrt(var) < 0.8 * D
    levels = []
    renoise(data.denoise, x[:1], sigmas, callback=lambda step: levels.append(step.sigma))
    assert len(levels) == n  # n levels exactly, the last re-noise level is 0
