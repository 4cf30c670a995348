"""Samplers against data whose optimal denoiser is known.

For Gaussian data every sampler is affine in its start and in every noise it draws, so its mean and
standard deviation follow exactly, in float64, from a batch of basis vectors run through the sampler's
own code: nothing here is Monte Carlo unless it says so.
"""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch

from verisim.diffusion import flow_samplers, multistep, samplers, stepping
from verisim.diffusion.oracles import gaussian
from verisim.diffusion.samplers import SAMPLERS, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, euler, heun, pndm
from verisim.diffusion.schedules import SCHEDULES, angle, karras, make_sigmas, vp_linear, vp_linear_table

STEPS = [1, 2, 3, 5, 10, 20, 50, 100, 250, 999, 1000]
DATA = gaussian(0.3, 0.2)


def moments(run, sigmas, monkeypatch, data=DATA):
    """Exact mean and std of a sampler on Gaussian data, by basis vectors for its start and noises."""
    rows = 2 * len(sigmas) + 2
    drawn = 0

    def basis(x, generator):
        nonlocal drawn
        drawn += 1
        e = torch.zeros_like(x)
        e[drawn + 1] = 1.0
        return e

    for module in (samplers, stepping, flow_samplers, multistep):
        monkeypatch.setattr(module, "draw_noise", basis, raising=False)
    x = torch.zeros(rows, 1, dtype=torch.float64)
    x[1] = sigmas[0]
    out = run(data.denoise, x, sigmas).flatten()
    return float(out[0]), float((out - out[0]).square().sum().sqrt())


def ddpm_recursion(sigmas, mean=0.3, std=0.2):
    """Closed form of ancestral sampling on N(mean, std^2): q(x_s | x_t, x0 = D(x_t)) in x = x0 + sigma eps."""
    m, var = 0.0, float(sigmas[0]) ** 2
    for t, s in pairwise(sigmas.tolist()):
        k, r = std**2 / (std**2 + t**2), s**2 / t**2
        d = mean + k * (m - mean)
        m, var = r * m + (1 - r) * d, (r + (1 - r) * k) ** 2 * var + s**2 * (t**2 - s**2) / t**2
    return m, math.sqrt(var)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("schedule", ["vp_linear", "vp_cosine", "karras", "angle"])
def test_ddpm_follows_its_closed_form(schedule, n, monkeypatch):
    """Ancestral sampling is exactly respaced at every n: mean and std equal the recursion's."""
    sigmas = SCHEDULES[schedule](n)
    assert moments(ddpm, sigmas, monkeypatch) == pytest.approx(ddpm_recursion(sigmas), rel=1e-8, abs=1e-12)


def test_ddpm_by_monte_carlo():
    """The same with real noise: 100k samples agree with the recursion to 4 standard errors."""
    sigmas = vp_linear(50)
    g = torch.Generator().manual_seed(1)
    x = float(sigmas[0]) * torch.randn(100_000, 1, generator=g)
    y = ddpm(DATA.denoise, x, sigmas, generator=g).double()
    mean, std = ddpm_recursion(sigmas)
    assert float(y.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(1e5))
    assert float(y.std()) == pytest.approx(std, abs=4 * std / math.sqrt(2e5))


def variance_preserving_ddpm(denoise, x, n, previous):
    """Ho 2020, eq. 7 with betas, as textbooks write it; `previous(t, n)` is the step stepped to (-1 = data)."""
    alpha_bar = 1 / (1 + vp_linear_table() ** 2)
    timesteps = [(2000 * (n - i) + n) // (2 * n) - 1 for i in range(n)]
    x = x / (1 + vp_linear_table()[timesteps[0]] ** 2).sqrt()
    for i, t in enumerate(timesteps):
        p = previous(timesteps, i)
        a, b = float(alpha_bar[t]), float(alpha_bar[p]) if p >= 0 else 1.0
        x0 = denoise(x / math.sqrt(a), torch.full((len(x),), math.sqrt((1 - a) / a), dtype=x.dtype))
        beta = 1 - a / b
        x = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a) * x
        if p >= 0:
            x = x + math.sqrt(beta * (1 - b) / (1 - a)) * samplers.draw_noise(x, None)
    return x


def right(timesteps, i):
    return timesteps[i + 1] if i + 1 < len(timesteps) else -1


def one_less(timesteps, i):  # the fault of MONAI's DDPM: steps to t - 1 after respacing
    return timesteps[i] - 1


@pytest.mark.parametrize("n", [1, 2, 10, 50, 250, 1000])
def test_ddpm_is_the_variance_preserving_one(n, monkeypatch):
    """Beta-tilde of the respaced chain in textbook form gives the same mean and std."""
    sigmas = vp_linear(n)

    def run(denoise, x, _):
        return variance_preserving_ddpm(denoise, x, n, right)

    got, textbook = moments(ddpm, sigmas, monkeypatch), moments(run, sigmas, monkeypatch)
    assert got == pytest.approx(textbook, rel=1e-4)  # x_T has variance 1 + 1 / sigma_max^2 in one of them


@pytest.mark.parametrize("n", [10, 50, 250])
def test_control_stepping_to_the_step_before_fails(n, monkeypatch):
    """The fault of stepping to timestep - 1 after respacing does not pass the test above."""
    sigmas = vp_linear(n)

    def run(denoise, x, _):
        return variance_preserving_ddpm(denoise, x, n, one_less)

    _, std = moments(run, sigmas, monkeypatch)
    assert std > 2 * ddpm_recursion(sigmas)[1]
    assert n == 10 or std > 0.4  # 0.49 at 250, 0.85 at 50 in the peer; the data have 0.2


def test_euler_follows_its_closed_form(monkeypatch):
    """DDIM multiplies the deviation by (std^2 + s t) / (std^2 + t^2) per step, at every n and grid."""
    for name, schedule in SCHEDULES.items():
        for n in STEPS:
            sigmas = schedule(n)
            m, a = 0.0 - 0.3, float(sigmas[0])
            for t, s in pairwise(sigmas.tolist()):
                factor = (0.2**2 + s * t) / (0.2**2 + t**2)
                m, a = m * factor, a * factor
            assert moments(euler, sigmas, monkeypatch) == pytest.approx((m + 0.3, a), rel=1e-8), (name, n)


def test_euler_on_the_angle_grid_is_the_best_there_is(monkeypatch):
    """n equal angles shrink the std by cos(a)^n, and no random perturbation of the grid does better."""
    for n in (3, 10, 50):
        sigmas = angle(n, 0.2)
        a = math.atan(1000) / n
        centred = gaussian(0.0, 0.2)
        _, std = moments(euler, sigmas, monkeypatch, centred)
        start = 0.2 * math.hypot(1, 1000)
        assert std == pytest.approx(float(sigmas[0]) * math.cos(a) ** n * 0.2 / start, rel=1e-9)
        g = torch.Generator().manual_seed(n)
        for _ in range(5):
            moved = sigmas.clone()
            moved[1:-1] *= 1 + 0.1 / n * torch.randn(n - 1, generator=g, dtype=torch.float64)
            assert moments(euler, moved, monkeypatch, centred)[1] < std


def test_control_wrong_previous_level_fails(monkeypatch):
    """The fault of DDIM with prev = t - T // n on a linspace grid is off by its known amount (0.151)."""
    table = vp_linear_table()
    n = 10
    timesteps = torch.linspace(999, 0, n, dtype=torch.float64).round().long().tolist()
    exact = torch.cat([table[timesteps], torch.zeros(1, dtype=torch.float64)])

    def faulty(denoise, x, _):
        alpha_bar = 1 / (1 + table**2)
        x = x * alpha_bar[timesteps[0]].sqrt()  # variance-preserving state: its scale goes wrong too
        for t in timesteps:
            p = t - 1000 // n
            a, b = float(alpha_bar[t]), float(alpha_bar[p]) if p >= 0 else 1.0
            x0 = denoise(x / math.sqrt(a), x.new_full((len(x),), float(table[t])))
            x = math.sqrt(b) * x0 + math.sqrt((1 - b) / (1 - a)) * (x - math.sqrt(a) * x0)
        return x

    right_std = moments(euler, exact, monkeypatch)[1]
    wrong_std = moments(faulty, exact, monkeypatch)[1]
    assert right_std == pytest.approx(0.098, abs=0.003)
    assert wrong_std == pytest.approx(0.151, abs=0.003)


def exact_map(sigmas, mean=0.3, std=0.2):
    """Mean and std of the probability-flow ODE from sigma_max * noise down to 0."""
    shrink = std / math.hypot(std, float(sigmas[0]))
    return mean - mean * shrink, float(sigmas[0]) * shrink


@pytest.mark.parametrize(
    ("name", "schedule", "order"),
    [
        ("euler", "angle", 1),
        ("heun", "shifted", 2),
        ("flow_heun", "flow", 2),
        ("dpmpp_2m", "flow", 2),
        ("pndm", "angle", 2),
    ],
)
def test_order_of_convergence(name, schedule, order, monkeypatch):
    """Doubling the steps divides the error by at least 2^order (less 15 %), up to float64."""
    run = SAMPLERS[name].run
    if name == "flow_heun":
        run = partial(run, sigma_data=0.2)
    errors = []
    for n in (100, 200, 400):
        sigmas = make_sigmas(schedule, n, 0.2, sigma_max=8.0)
        errors.append(abs(moments(run, sigmas, monkeypatch)[1] - exact_map(sigmas)[1]))
    assert errors[0] < 0.01
    for a, b in pairwise(errors):
        assert a / b > 0.85 * 2**order
    if order == 1:
        assert errors[0] / errors[1] < 2.2  # and the test can tell first from second order


def test_dpmpp_beats_euler_tenfold_at_ten_evaluations(monkeypatch):
    """What a second-order step is for."""
    e = make_sigmas("flow", 10, 0.2)
    target = exact_map(e)[1]
    errors = {run: abs(moments(run, e, monkeypatch)[1] - target) for run in (euler, dpmpp_2m)}
    assert errors[dpmpp_2m] < 0.1 * errors[euler]


@pytest.mark.parametrize("n", [1, 2, 5, 50])
def test_samplers_that_are_one(n, monkeypatch):
    """ddim(0) = euler = flow_euler; ddim(1) = ddpm; 2M-SDE(0) = 2M: identities of the papers."""
    for schedule in ("karras", "vp_linear", "flow"):
        sigmas = make_sigmas(schedule, n)
        same = partial(pytest.approx, rel=1e-9)
        assert moments(ddim, sigmas, monkeypatch) == same(moments(euler, sigmas, monkeypatch))
        assert moments(SAMPLERS["flow_euler"].run, sigmas, monkeypatch) == same(
            moments(euler, sigmas, monkeypatch)
        )
        assert moments(partial(ddim, eta=1.0), sigmas, monkeypatch) == same(
            moments(ddpm, sigmas, monkeypatch)
        )
        assert moments(partial(dpmpp_2m_sde, eta=0.0), sigmas, monkeypatch) == same(
            moments(dpmpp_2m, sigmas, monkeypatch)
        )


def test_multistep_weights_are_adams_bashforth_on_a_uniform_grid():
    """The 55, -59, 37, -9 of PNDM, and exact for cubic slopes on any grid."""
    got = multistep.multistep_weights([4.0, 5.0, 6.0, 7.0], 3.0)
    assert got == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])
    levels, s = [1.0, 1.7, 3.0, 4.1], 0.2
    mean = (levels[0] ** 4 - s**4) / 4 / (levels[0] - s)
    weights = multistep.multistep_weights(levels, s)
    assert sum(w * u**3 for w, u in zip(weights, levels)) == pytest.approx(mean)


def test_churn_keeps_the_distribution(monkeypatch):
    """Noise added back and removed leaves the Gaussian what it is, and is really drawn."""
    sigmas = make_sigmas("shifted", 200, 0.2)
    calm, churned = (moments(partial(heun, churn=c), sigmas, monkeypatch) for c in (0.0, 40.0))
    assert calm == pytest.approx((0.3, 0.2), abs=2e-3)
    assert churned == pytest.approx((0.3, 0.2), abs=2e-3)
    assert calm != churned


def test_pndm_of_order_one_is_euler(monkeypatch):
    """The multistep method without a memory is Euler."""
    sigmas = karras(9)
    assert moments(partial(pndm, order=1), sigmas, monkeypatch) == pytest.approx(
        moments(euler, sigmas, monkeypatch), rel=1e-9
    )
