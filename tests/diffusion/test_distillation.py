"""Progressive distillation: the target is a closed form, and a perfect student loses nothing but steps."""

import pytest
import torch

from verisim.diffusion.distillation import ddim_step, distillation_target, distillation_weight, halved_grid
from verisim.diffusion.oracles import Mixture, gaussian
from verisim.diffusion.samplers import euler
from verisim.diffusion.schedules import SCHEDULES, make_sigmas
from verisim.errors import VerisimError

MEAN, STD = 0.3, 0.2
TWO = Mixture((-0.6, 0.5), (0.1, 0.2), (0.4, 0.6))
NESTED = sorted(set(SCHEDULES) - {"karras"})


def noise(n=512, seed=0):
    return torch.randn(n, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_target_of_a_gaussian_teacher_is_the_closed_form():
    """D = m + g (x - m), g = d^2 / (d^2 + t^2): a DDIM step scales x - m by k = g + (s/t)(1 - g)."""
    data, x = gaussian(MEAN, STD), 3 * noise()

    def k(t, s):
        g = STD**2 / (STD**2 + t**2)
        return g + s / t * (1 - g)

    for t, m, s in ((5.0, 2.0, 0.7), (0.9, 0.5, 0.1), (0.3, 0.1, 0.0)):
        levels = [torch.full((len(x),), v, dtype=torch.float64) for v in (t, m, s)]
        target = distillation_target(data.denoise, x, *levels)
        closed = MEAN + (k(t, m) * k(m, s) - s / t) / (1 - s / t) * (x - MEAN)
        torch.testing.assert_close(target, closed, rtol=1e-12, atol=1e-12)
        plain = data.denoise(x, levels[0])
        assert float((target - plain).abs().max()) > 1e-2  # control: it is not what the teacher says at t


def test_one_step_with_the_target_is_two_steps_of_the_teacher():
    """For any denoiser, levels of each sample its own; and the target lies between the teacher's two estimates."""
    g = torch.Generator().manual_seed(1)
    s, m, t = torch.rand(3, 512, generator=g, dtype=torch.float64).sort(0).values
    x = noise() * (1 + t[:, None])
    target = distillation_target(TWO.denoise, x, t, m, s)
    x_m = ddim_step(x, TWO.denoise(x, t), t, m)
    two = ddim_step(x_m, TWO.denoise(x_m, m), m, s)
    torch.testing.assert_close(ddim_step(x, target, t, s), two, rtol=1e-9, atol=1e-9)
    ends = torch.stack([TWO.denoise(x, t), TWO.denoise(x_m, m)])
    assert bool(((target >= ends.amin(0) - 1e-9) & (target <= ends.amax(0) + 1e-9)).all())


def perfect_student(teacher, levels, middle):
    """The denoiser that has learned its target exactly, at the levels that it knows."""

    def denoise(x, sigma):
        i = int((levels - sigma[0]).abs().argmin())
        t, m, s = (sigma.new_full((len(x),), float(v)) for v in (levels[i], middle[i], levels[i + 1]))
        return distillation_target(teacher, x, t, m, s)

    return denoise


@pytest.mark.parametrize("schedule", ["angle", "vp_linear"])
def test_three_perfect_halvings_lose_nothing(schedule):
    """64 -> 8 steps: the students' 8 steps end where the teacher's 64 do; its own 8 steps are far worse."""
    teacher, n = TWO.denoise, 64
    top = 80.0
    normal = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[:, None]
    start = float(make_sigmas(schedule, n, TWO.std, top)[0]) * normal  # no error of sampling
    end = euler(teacher, start, make_sigmas(schedule, n, TWO.std, top))
    student = teacher
    while n > 8:
        n //= 2
        levels, middle = halved_grid(schedule, n, TWO.std, top)
        student = perfect_student(student, levels, middle)
    few = euler(student, start, make_sigmas(schedule, 8, TWO.std, top))
    torch.testing.assert_close(few, end, rtol=1e-6, atol=1e-6)
    own = euler(teacher, start, make_sigmas(schedule, 8, TWO.std, top))
    assert TWO.wasserstein(own) > 3 * TWO.wasserstein(few)


@pytest.mark.parametrize("name", NESTED)
def test_grids_are_halved_exactly(name):
    """A student's levels are every second one of its teacher's, down to 0."""
    for n in (1, 4, 10):
        levels, middle = halved_grid(name, n, 0.5, 80.0)
        assert len(levels) == n + 1 and len(middle) == n and float(levels[-1]) == 0
        assert bool((levels[:-1] > middle).all()) and bool((middle > levels[1:]).all())
        torch.testing.assert_close(levels, make_sigmas(name, n, 0.5, 80.0), rtol=1e-9, atol=0)


def test_grids_that_cannot_be_halved_are_refused():
    """Karras levels of n steps are no part of those of 2n; a training grid has no more levels than it has."""
    with pytest.raises(VerisimError, match="'karras' cannot be halved: its 4 levels are no part of its 8"):
        halved_grid("karras", 4, 0.5, 80.0)
    with pytest.raises(VerisimError, match="1024 steps asked of a schedule with 1000"):
        halved_grid("vp_linear", 512, 0.5, 80.0)


def test_weights():
    """max(SNR, 1) on x0; for a network that answers with the noise its own error weighs 1 at every level."""
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(
        distillation_weight(sigma), torch.tensor([100.0, 1.0, 1.0], dtype=torch.float64)
    )
    own = distillation_weight(sigma, of_noise=True) * sigma**2
    torch.testing.assert_close(own, torch.ones(3, dtype=torch.float64))
