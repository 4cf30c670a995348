"""The probability-flow ODE's likelihood against densities that are known in closed form."""

import math

import pytest
import torch

from verisim.diffusion.ode_likelihood import ode_log_prob
from verisim.diffusion.oracles import Mixture, gaussian
from verisim.errors import VerisimError

LOW, HIGH = 0.02, 40.0
SHAPES = [(3, 1), (3, 1, 2, 2), (3, 1, 1, 2, 2)]


def points(shape):
    """Points where the data are, not in their tails."""
    x = 0.4 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.clamp(-0.6, 0.6)


def density(data, x, extra=LOW):
    """log density of data + extra eps, (B,)."""
    logs = [
        math.log(w) - 0.5 * ((x - m) ** 2 / (s * s + extra**2) + math.log(2 * math.pi * (s * s + extra**2)))
        for m, s, w in zip(data.means, data.stds, data.weights)
    ]
    return torch.logsumexp(torch.stack(logs), 0).flatten(1).sum(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("data", [gaussian(0.0, 0.4), Mixture((-0.45, 0.3), (0.2, 0.15), (0.4, 0.6))])
def test_it_is_the_density_of_the_data(data, shape):
    """1D, 2D, 3D; Gaussian and mixture: within 0.002 nats per value at 400 steps."""
    x = points(shape)
    got = ode_log_prob(data.denoise, x, sigma_data=data.std, sigma_min=LOW, sigma_max=HIGH, steps=400)
    truth, d = density(data, x), x[0].numel()
    assert float((got - truth).abs().max()) < 0.002 * d
    wrong = gaussian(data.mean + 0.3, data.std)  # control: the density of other data
    assert float((got - density(wrong, x)).abs().max()) > 0.02 * d


def test_second_order():
    """Doubling the steps divides the error by about four."""
    data, x = gaussian(0.0, 0.4), points((3, 1, 2, 2))
    errors = []
    for steps in (50, 100, 200):
        got = ode_log_prob(data.denoise, x, sigma_data=0.4, sigma_min=LOW, sigma_max=HIGH, steps=steps)
        errors.append(float((got - density(data, x)).abs().max()))
    assert errors[0] / errors[1] > 3.4 and errors[1] / errors[2] > 3.4


def test_random_probes_agree_with_the_exact_trace():
    """One sign vector is exact where the Jacobian is diagonal, as for independent values; the seed decides."""
    data, x = gaussian(0.3, 0.4), points((3, 1, 2, 2))
    kwargs = {"sigma_data": 0.4, "steps": 20}
    exact = ode_log_prob(data.denoise, x, **kwargs)
    probed = ode_log_prob(data.denoise, x, probes=1, generator=torch.Generator().manual_seed(0), **kwargs)
    torch.testing.assert_close(exact, probed)

    def coupled(y, sigma):  # every value pulled to the mean of its image: no longer diagonal
        return data.denoise(0.5 * y + 0.5 * y.mean((1, 2, 3), keepdim=True), sigma)

    exact = ode_log_prob(coupled, x, **kwargs)
    draws = [
        ode_log_prob(coupled, x, probes=8, generator=torch.Generator().manual_seed(k), **kwargs)
        for k in range(12)
    ]
    spread = torch.stack(draws).std(0)
    assert float(spread.min()) > 0
    assert bool(((torch.stack(draws).mean(0) - exact).abs() < 4 * spread / math.sqrt(12)).all())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "whole number of at least 1"),
        ({"sigma_min": 1.0, "sigma_max": 1.0}, "0 < sigma_min < sigma_max"),
        ({"probes": -1}, "probes = -1"),
        ({"sigma_data": 0.0}, "Constant images"),
    ],
)
def test_bad_input(kwargs, message):
    """One sentence each."""
    with pytest.raises(VerisimError, match=message):
        ode_log_prob(gaussian(0.0, 0.5).denoise, torch.zeros(1, 1), **kwargs)
