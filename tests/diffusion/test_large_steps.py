"""The chain of a few large steps: golden numbers, an exact posterior, and why x0 must be drawn."""

import math
from itertools import pairwise

import pytest
import torch

from verisim.diffusion.large_steps import LargeSteps, alpha_bars, step_times, step_variance
from verisim.errors import VerisimError

GOLDEN = {  # spec 003, section 0.2
    4: [0.478255, 0.849206, 0.956418, 0.987404],
    8: [0.156445, 0.381493, 0.546501, 0.667488, 0.756197, 0.821240, 0.868930, 0.903898],
}


@pytest.mark.parametrize("n", sorted(GOLDEN))
def test_golden_betas(n):
    """Six decimals of the published schedule."""
    assert LargeSteps(n).beta.tolist() == pytest.approx(GOLDEN[n], abs=5e-7)


def test_golden_alpha_bars():
    """The continuous alpha_bar at the five times of n = 4; the chain starts from a clean image instead."""
    bar = alpha_bars(step_times(4))
    assert bar.tolist() == pytest.approx([0.999890, 0.521687, 0.078667, 0.003429, 0.000043], abs=5e-7)
    chain = LargeSteps(4).alpha_bar
    assert float(chain[0]) == 1.0
    torch.testing.assert_close(chain[1:], bar[1:] / bar[0])


def test_golden_equation_17_19():
    """gamma at t = 250...1000 with its signs corrected; t_min = 0 is that schedule; the printed form is another."""
    golden = [0.476320, 0.849023, 0.956473, 0.987451]
    got = [step_variance(t, 250, 1000) for t in (250, 500, 750, 1000)]
    assert got == pytest.approx(golden, abs=5e-7)
    assert LargeSteps(4, t_min=0.0).beta.tolist() == pytest.approx(got, abs=1e-12)

    def printed(t: float, k: float, total: float) -> float:
        return 1 - math.exp(0.1 * k / total - 19.9 * (2 * t * k - k * k) / (2 * total**2))

    assert all(abs(printed(t, 250, 1000) - g) > 5e-4 for t, g in zip((250, 500, 750, 1000), golden))
    assert printed(1, 1, 1000) < 0 < step_variance(1, 1, 1000)  # a variance cannot be negative


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_the_posterior_is_exact(n):
    """Drawn from q(x_t | x0) and then from the posterior, x_s has exactly the mean and variance of q(x_s | x0)."""
    chain = LargeSteps(n)
    bar, one = chain.alpha_bar, torch.ones(1, 1, dtype=torch.float64)
    zero = torch.zeros_like(one)
    for t in range(1, n + 1):
        for s in range(t):
            at, to = torch.tensor([t]), torch.tensor([s])
            of_x, of_x0, of_eps = (
                float(chain.posterior(a, b, at, to, e))
                for a, b, e in ((one, zero, zero), (zero, one, zero), (zero, zero, one))
            )
            assert of_x0 + of_x * math.sqrt(bar[t]) == pytest.approx(math.sqrt(bar[s]), abs=1e-12)
            assert of_x**2 * float(1 - bar[t]) + of_eps**2 == pytest.approx(float(1 - bar[s]), abs=1e-12)
            if s == 0:
                assert (of_x, of_x0, of_eps) == (0.0, 1.0, 0.0)


def test_one_step_after_another_is_the_marginal():
    """noised(level i - 1) then stepped(i) has the coefficients of noised(i)."""
    chain, one = LargeSteps(4), torch.ones(4, 1, dtype=torch.float64)
    level = torch.arange(1, 5)
    zero = torch.zeros_like(one)
    signal = chain.stepped(chain.noised(one, level - 1, zero), level, zero)
    torch.testing.assert_close(signal, chain.noised(one, level, zero))
    old = chain.stepped(chain.noised(zero, level - 1, one), level, zero)
    new = chain.stepped(zero, level, one)
    torch.testing.assert_close(old**2 + new**2, chain.noised(zero, level, one) ** 2)


def oracle(chain, mean, std, spread):
    """Draws x0 | x_t of N(mean, std^2) data; spread 0 gives its mean alone."""

    def draw(x, level):
        a = float(chain.alpha_bar[int(level[0])])
        total = a * std**2 + 1 - a
        centre = mean + math.sqrt(a) * std**2 / total * (x - math.sqrt(a) * mean)
        return centre + spread * std * math.sqrt((1 - a) / total) * torch.randn(x.shape, generator=noise)

    noise = torch.Generator().manual_seed(1)
    return draw


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_drawn_x0_few_steps_are_exact_and_with_its_mean_they_are_not(steps):
    """Any number of steps gives N(0.3, 0.2^2) if x0 is drawn; a denoiser's mean loses three tenths of the spread or more."""
    chain = LargeSteps(4)
    x = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = chain.walk(oracle(chain, 0.3, 0.2, 1.0), x, steps, torch.Generator().manual_seed(2))
    averaged = chain.walk(oracle(chain, 0.3, 0.2, 0.0), x, steps, torch.Generator().manual_seed(2))
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.004)
    assert float(drawn.std()) == pytest.approx(0.2, abs=0.004)
    assert float(averaged.std()) < 0.14


def test_levels_are_evenly_spaced_and_bounded():
    """Any number of steps up to n; each level once, from n to 0."""
    chain = LargeSteps(8)
    assert chain.levels() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert (chain.levels(4), chain.levels(2), chain.levels(1)) == ([8, 6, 4, 2, 0], [8, 4, 0], [8, 0])
    for k in range(1, 9):
        walk = chain.levels(k)
        assert walk[0] == 8 and walk[-1] == 0 and all(a > b for a, b in pairwise(walk))
    with pytest.raises(
        VerisimError, match=r"9 steps asked of a model trained on 8 levels.*1 to 8 are possible"
    ):
        chain.levels(9)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LargeSteps(0).beta, "at least 1"),
        (lambda: LargeSteps(4, beta_min=20.0).beta, "0 <= beta_min < beta_max"),
        (lambda: LargeSteps(4, t_min=1.0).beta, "t_min = 1"),
    ],
)
def test_bad_settings_are_refused(make, text):
    with pytest.raises(VerisimError, match=text):
        make()
