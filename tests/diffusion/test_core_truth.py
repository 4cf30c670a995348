"""The acceptance test of the core (spec 003, section 0.4 a): correlated Gaussian data in 2D."""

import pytest
import torch

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
