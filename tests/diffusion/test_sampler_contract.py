"""What every sampler owes its caller: finite at any number of steps, its stated cost, its generator alone."""

from functools import partial

import pytest
import torch

from verisim.diffusion.oracles import Mixture, gaussian
from verisim.diffusion.samplers import SAMPLERS, ddim, heun, pndm
from verisim.diffusion.schedules import karras, make_sigmas
from verisim.errors import VerisimError

STEPS = [1, 2, 3, 5, 10, 20, 50, 100, 250, 999, 1000]
DATA = gaussian(0.3, 0.2)
MODES = Mixture((-0.6, 0.1, 0.7), (0.05, 0.1, 0.05), (0.3, 0.5, 0.2))


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_finite_at_every_number_of_steps(name, n):
    """Peers give NaN at n = T or crash; here no cell may, on its own and on the training grid, 1D to 3D."""
    method = SAMPLERS[name]
    shapes = [(4, 1), (2, 1, 3, 3), (2, 1, 2, 2, 2)] if n <= 100 else [(2, 1, 2, 2, 2)]
    for schedule in (method.schedule, "vp_linear"):
        sigmas = make_sigmas(schedule, n, DATA.std)
        for shape in shapes:
            for data in (DATA, MODES) if n <= 250 else (MODES,):
                g = torch.Generator().manual_seed(0)
                x = float(sigmas[0]) * torch.randn(shape, generator=g)
                y = method.run(data.denoise, x, sigmas, generator=g)
                assert y.shape == x.shape
                assert y.dtype == torch.float32
                assert torch.isfinite(y).all()
                if name != "heun":  # large Heun steps in sigma overshoot: EDM's own property
                    assert float(y.abs().max()) < 3


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_number_of_network_evaluations(name, n):
    """The registry's cost is what a run really costs; the callback sees every step once."""
    calls, seen = [], []

    def counting(x, sigma):
        calls.append(float(sigma[0]))
        return DATA.denoise(x, sigma)

    sigmas = karras(n)
    SAMPLERS[name].run(counting, torch.ones(2, 1), sigmas, callback=seen.append)
    assert len(calls) == SAMPLERS[name].evaluations(n)
    assert [step.i for step in seen] == list(range(n))
    assert [step.sigma for step in seen] == pytest.approx(sigmas[:-1].tolist())


@pytest.mark.parametrize("name", SAMPLERS)
def test_three_modes_come_out_in_their_proportions(name):
    """A mixture needs more than two moments: W2 within 10 % of the std at 100 steps (16k values)."""
    sigmas = make_sigmas(SAMPLERS[name].schedule, 100, MODES.std)
    g = torch.Generator().manual_seed(0)
    start = gaussian(0.0, 1.0).quantiles(1 << 14)[torch.randperm(1 << 14, generator=g)]
    x = (float(sigmas[0]) * start).float()[:, None]
    y = SAMPLERS[name].run(MODES.denoise, x, sigmas, generator=g)
    assert MODES.wasserstein(y) < 0.1 * MODES.std


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_comes_from_the_generator_alone(name):
    """The same generator gives the same bits whatever the global state; another one differs."""
    run, sigmas = SAMPLERS[name].run, karras(6)
    x = 80 * torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for seed, glob in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(glob)
        results.append(run(MODES.denoise, x, sigmas, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2]) is not SAMPLERS[name].stochastic


@pytest.mark.parametrize(
    ("run", "message"),
    [(partial(ddim, eta=1.5), "eta = 1.5"), (partial(heun, churn=-1.0), "churn = -1")],
)
def test_bad_sampler_settings(run, message):
    """Settings out of range are named with what is allowed."""
    with pytest.raises(VerisimError, match=message):
        run(DATA.denoise, torch.ones(1, 1), karras(3))


def test_a_schedule_that_is_none_is_refused_by_every_sampler():
    """A sampler never walks a grid that does not end in 0."""
    for method in SAMPLERS.values():
        with pytest.raises(VerisimError, match="end in exactly 0"):
            method.run(DATA.denoise, torch.ones(1, 1), torch.tensor([2.0, 1.0], dtype=torch.float64))


def test_multistep_order_is_checked():
    """Five points have no exact weights here."""
    with pytest.raises(VerisimError, match="order = 5"):
        pndm(DATA.denoise, torch.ones(1, 1), karras(3), order=5)
