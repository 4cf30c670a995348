"""The acceptance tests of the core (spec 003, section 0.4): correlated Gaussian data, and a small trained network."""

import math

import pytest
import torch
from torch import nn

from verisim.diffusion.parametrisation import Parametrisation
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import make_sigmas

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.16, 0.09], [0.09, 0.09]], dtype=torch.float64)
VALUES, AXES = torch.linalg.eigh(COVARIANCE)


def correlated(x, sigma):
    """The optimal denoiser of N(MEAN, COVARIANCE), (B, 2): shrinks along each principal axis."""
    y = (x - MEAN) @ AXES
    return MEAN + (y * VALUES / (VALUES + sigma[:, None] ** 2)) @ AXES.T


def drawn(name, denoise, n=20_000, steps=200):
    sigmas = make_sigmas(SAMPLERS[name].schedule, steps, 0.35)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(n // 2, 2, generator=g, dtype=torch.float64)
    z = torch.cat([z, -z])  # antithetic: the mean of the start is exactly 0
    x = float(sigmas[0]) * z @ torch.linalg.inv(torch.linalg.cholesky(z.T @ z / n)).T  # and its covariance 1
    return SAMPLERS[name].run(denoise, x, sigmas, generator=g)


def right(y):
    """Mean within 2 % of the spread and covariance within 2 % (Monte Carlo of the stochastic ones: 4 %)."""
    spread = COVARIANCE.diagonal().sqrt()
    mean = ((y.mean(0) - MEAN).abs() / spread).max()
    scale = spread[:, None] * spread
    return float(mean), float(((y.T.cov() - COVARIANCE).abs() / scale).max())


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_returns_mean_and_covariance(name):
    """Spec 003, section 0.4 (a): 20,000 samples in 2D, 200 steps, with the analytic denoiser."""
    mean, covariance = right(drawn(name, correlated))
    assert mean < 0.02 and covariance < (0.04 if SAMPLERS[name].stochastic else 0.02)


def test_control_a_denoiser_of_other_data_fails():
    """The same without the correlation is caught."""
    spread = COVARIANCE.diagonal()

    def uncorrelated(x, sigma):
        return MEAN + spread / (spread + sigma[:, None] ** 2) * (x - MEAN)

    assert right(drawn("dpmpp_2m", uncorrelated))[1] > 0.5


def eight(n, g):
    """Eight Gaussians on a circle of radius 1, std 0.1; (n, 2)."""
    angle = torch.randint(0, 8, (n,), generator=g) * math.pi / 4
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(n, 2, generator=g)


class Small(nn.Module):
    """Three layers on x and the noise level, with their sines and cosines."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(20, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
        )

    def forward(self, x, c_noise, label):
        angle = c_noise[:, None].to(x.dtype) * torch.tensor([1.0, 2.0, 4.0])
        waves = torch.cat([2 * x, 4 * x, 8 * x], 1)
        return self.layers(torch.cat([x, waves.sin(), waves.cos(), angle.sin(), angle.cos()], 1))


def modes(p, net):
    """Share of samples within 3 std of a centre, and the smallest share of a mode."""
    g = torch.Generator().manual_seed(1)
    sigmas = make_sigmas("flow", 50, 0.7, sigma_max=20.0)  # as far as training goes
    x = float(sigmas[0]) * torch.randn(2000, 2, generator=g)
    with torch.no_grad():
        y = SAMPLERS["dpmpp_2m"].run(lambda x, s: p.denoise(net, x, s), x, sigmas)
    angles = torch.arange(8) * math.pi / 4
    distance, nearest = torch.cdist(y, torch.stack([angles.cos(), angles.sin()], 1)).min(1)
    return float((distance < 0.3).float().mean()), float(nearest.bincount(minlength=8).min()) / len(y)


def test_a_small_network_learns_eight_gaussians():
    """Spec 003, section 0.4 (b): at least 95 % near a mode, each mode at least 8 %; untrained (control) it is not so."""
    torch.manual_seed(0)
    g, p, net = torch.Generator().manual_seed(0), Parametrisation("edm", 0.7), Small()
    assert modes(p, net)[0] < 0.5
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    total = 2000
    for step in range(total):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / total)
        x0 = eight(512, g)
        sigma = torch.exp(-0.8 + 1.4 * torch.randn(512, generator=g))
        optimiser.zero_grad()
        p.loss(net, x0, torch.randn(512, 2, generator=g), sigma).mean().backward()
        optimiser.step()
    near, smallest = modes(p, net)
    print(near, smallest)
    assert near >= 0.95 and smallest >= 0.08
