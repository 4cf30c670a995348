"""Ex-post density of many latents: equal to the dense one where both exist, exact moments, fit to samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from verisim.models.autoencoders.density import ExPostDensity
from verisim.models.autoencoders.principal_density import (
    DENSE_LATENTS,
    PrincipalDensity,
    latent_density,
    principal_directions,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(n: int, d: int, seed: int = 0) -> Tensor:
    """n points of a Gaussian with a full covariance, mean 1, (n, d)."""
    mix = torch.randn(d, d, generator=seeded(seed)) / math.sqrt(d)
    return 1 + torch.randn(n, d, generator=seeded(seed + 1)) @ mix


def test_the_size_decides():
    """Up to 512 latents the covariance is whole; 8,192 latents fit into memory at all."""
    assert type(latent_density(DENSE_LATENTS, 2)) is ExPostDensity
    big = latent_density(8192, 10)
    assert isinstance(big, PrincipalDensity)
    assert sum(b.numel() for b in big.buffers()) * 4 < 20e6


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_full_rank_equals_the_dense_density(prior):
    """With r = d nothing is lost: the same log density as the full covariance, to rounding."""
    mean, variance = correlated(400, 6), torch.full((400, 6), 0.1)
    dense, principal = ExPostDensity(6, 1), PrincipalDensity(6, 1)
    for density in (dense, principal):
        density.fit(mean, variance)
    z, group = correlated(20, 6, seed=5), torch.zeros(20, dtype=torch.int64)
    want, got = (d.log_density(prior, group, z) for d in (dense, principal))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    off = ExPostDensity(6, 1)  # negative control: another data set has another density
    off.fit(mean * 2, variance)
    assert float((off.log_density(prior, group, z) - want).abs().max()) > 0.1


def test_log_density_equals_the_written_out_gaussian():
    """Low rank: N(c, U L L' U' + diag v) by torch.distributions."""
    density = PrincipalDensity(8, 1, rank=3)
    density.fit(correlated(60, 8), torch.full((60, 8), 0.05))
    loading = density.basis.double() @ density.factors[0, 0].double()
    covariance = loading @ loading.T + density.rest[0].double().diag()
    truth = MultivariateNormal(density.centres[0].double(), covariance)
    z = correlated(5, 8, seed=9)
    got = density.log_density("gaussian", torch.zeros(5, dtype=torch.int64), z)
    torch.testing.assert_close(got, truth.log_prob(z.double()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_samples_have_the_moments_of_the_aggregate_posterior(prior):
    """Mean and every marginal variance, at a rank below the true one; N(0, 1) has others."""
    mean, variance = correlated(600, 12), torch.full((600, 12), 0.2)
    density = PrincipalDensity(12, 3, rank=4)
    density.fit(mean, variance)
    z = density.sample(prior, torch.zeros(20_000, dtype=torch.int64), seeded(2))
    want = mean.var(0, unbiased=False) + 0.2
    torch.testing.assert_close(z.mean(0), mean.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(z.var(0), want, rtol=0.08, atol=0)
    u = density.basis  # in the kept directions: their own variance, and the shadow of what is left
    along = (mean @ u).var(0, unbiased=False) + (u.square() * density.rest[0][:, None]).sum(0)
    torch.testing.assert_close((z @ u).var(0), along, rtol=0.08, atol=0)
    assert float((want - 1).abs().max()) > 0.15


def test_a_mixture_finds_two_clusters_that_a_gaussian_fills_in():
    """Nothing lies between two far clusters: the mixture knows, the single Gaussian does not."""
    side = torch.sign(torch.randn(500, 1, generator=seeded()))
    points = torch.randn(500, 520, generator=seeded(1)) * 0.1
    points[:, :50] += side
    density = latent_density(520, 2)
    density.fit(points, torch.full_like(points, 1e-3))
    group = torch.zeros(400, dtype=torch.int64)
    between = {
        p: density.sample(p, group, seeded(3))[:, :50].mean(1).abs() < 0.5 for p in ("gaussian", "mixture")
    }
    assert float(between["mixture"].float().mean()) < 0.02 < 0.2 < float(between["gaussian"].float().mean())
    g, m = (density.log_density(p, group[:8], points[:8]).mean() for p in ("gaussian", "mixture"))
    assert float(m) > float(g)


def test_directions_are_orthonormal_and_few_points_leave_zeros():
    """n points span n - 1 directions; the rest of the basis is zero, not noise."""
    u = principal_directions(correlated(5, 40).double(), 8)
    torch.testing.assert_close(u[:, :4].T @ u[:, :4], torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)
    assert float(u[:, 4:].abs().max()) == 0
    wide = principal_directions(correlated(100, 6).double(), 6)
    torch.testing.assert_close(wide.T @ wide, torch.eye(6, dtype=torch.float64), atol=1e-9, rtol=0)


def test_temperature_zero_is_the_mean_and_state_round_trips():
    """No noise at temperature 0; load(state()) gives the same draws."""
    density, copy = PrincipalDensity(600, 2), PrincipalDensity(600, 2)
    density.fit(correlated(40, 600), torch.ones(40, 600))
    copy.load(density.state())
    group = torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(
        density.sample("gaussian", group, seeded(), 0.0), density.centres[:1].expand(3, -1)
    )
    a, b = (d.sample("mixture", group, seeded(1)) for d in (density, copy))
    assert torch.equal(a, b)
