"""Matrix-variate normal latents: exact KL, covariance order, counts and golden sizes of the spatial VAE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.gaussian import normal_log_density
from verisim.models.autoencoders.matrix_normal import LOG_FACTOR_RANGE, MatrixNormal, matrix_normal_kl, outer
from verisim.models.autoencoders.svae import SVAE

FULL = {"kernel": 4, "norm": False}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(mean: Tensor, log_omega: Tensor, log_psi: Tensor) -> MultivariateNormal:
    """The same map as a multivariate normal of vec(z), columns stacked, with its d^2 x d^2 covariance."""
    covariance = torch.kron(torch.diag(log_psi.exp()), torch.diag(log_omega.exp()))
    return MultivariateNormal(mean.T.reshape(-1), covariance)


def standard(n: int) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64))


@pytest.mark.parametrize("d", [(3, 3), (2, 4)])
def test_kl_equals_that_of_the_dense_kronecker_gaussian(d):
    """The closed form against torch.distributions with the covariance written out, to 1e-10; d = 3 and d1 != d2."""
    mu, nu, log_omega, log_psi = (drawn(n, seed=s) for s, n in enumerate((*d, *d)))
    mean_square = mu.square().sum() * nu.square().sum()
    got = matrix_normal_kl(mean_square, [log_omega, log_psi])
    want = kl_divergence(dense(torch.outer(mu, nu), log_omega, log_psi), standard(d[0] * d[1]))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    n = d[0] * d[1]  # negative control: without the factor d of the log determinants it is another number
    wrong = 0.5 * (
        log_omega.exp().sum() * log_psi.exp().sum() + mean_square - n - (log_omega.sum() + log_psi.sum())
    )
    assert abs(float(wrong - want)) > 0.1


@pytest.mark.parametrize(("axes", "rank"), [(2, 0), (2, 1), (2, 3), (3, 1), (3, 2)])
def test_kl_equals_the_sum_over_latents(axes, rank):
    """Structured KL = KL of independent Gaussians with the same means and variances; any rank, 2D and 3D."""
    d = (3, 4, 2)[:axes]
    means = [drawn(2, 5, rank, n, seed=n).float() for n in d] if rank else [drawn(2, 5, *d).float()]
    q = MatrixNormal.from_factors(means, [drawn(2, 5, n, seed=9 + n).float() for n in d])
    torch.testing.assert_close(q.rate(), q.kl().sum(1), rtol=1e-5, atol=1e-4)


def test_kl_equals_monte_carlo():
    """E_q [log q(z) - log p(z)] over 40,000 draws lies within four standard errors of the closed form."""
    factors = [drawn(1, 2, 1, 3, seed=s).float() for s in (0, 1)]
    q = MatrixNormal.from_factors(factors, [drawn(1, 2, 3, seed=s).float() for s in (2, 3)])
    torch.manual_seed(0)
    mean, log_variance = q.mean.expand(40_000, -1), q.log_variance.expand(40_000, -1)
    z = mean + (0.5 * log_variance).exp() * torch.randn(40_000, 18)
    ratio = normal_log_density(z, mean, log_variance) - normal_log_density(
        z, torch.zeros_like(z), torch.zeros_like(z)
    )
    error = float(ratio.std()) / 200
    assert abs(float(ratio.mean()) - float(q.rate())) < 4 * error and error < 0.1 * float(q.rate())


def test_draws_have_the_kronecker_covariance_in_the_right_order():
    """cov(vec z), columns stacked, is psi kron omega to 3 %; the order that the source prints is not."""
    log_omega, log_psi = torch.tensor([[[0.0, 1.0, -1.0]]]), torch.tensor([[[0.5, -0.5, 1.5]]])
    one = MatrixNormal.from_factors([torch.ones(1, 1, 1, 3)] * 2, [log_omega, log_psi])
    many = MatrixNormal(
        one.mean.expand(200_000, -1), one.log_variance.expand(200_000, -1), one.clamped, one.mean_square, ()
    )
    torch.manual_seed(0)
    z = many.draw().view(-1, 3, 3).mT.flatten(1)  # (n, 9), columns stacked
    covariance, omega, psi = torch.cov(z.T), log_omega[0, 0].exp().diag(), log_psi[0, 0].exp().diag()
    scale = float(torch.kron(psi, omega).max())
    assert float((covariance - torch.kron(psi, omega)).abs().max()) < 0.03 * scale
    assert float((covariance - torch.kron(omega, psi)).abs().max()) > 0.3 * scale
    torch.testing.assert_close(z.mean(0), torch.ones(9), atol=0.02, rtol=0)


def test_outer_products():
    """Two and three axes, against einsum."""
    a, b, c = drawn(2, 3), drawn(2, 4), drawn(2, 5)
    torch.testing.assert_close(outer([a, b]), torch.einsum("bi,bj->bij", a, b))
    torch.testing.assert_close(outer([a, b, c]), torch.einsum("bi,bj,bk->bijk", a, b, c))


def test_factors_are_clamped_and_counted():
    """Log omega and log psi stay in [-8, 4], and each that had to be held is counted, per image."""
    log_omega = torch.tensor([[[0.0, 9.0, -99.0]], [[0.0, 0.0, 0.0]]])
    q = MatrixNormal.from_factors([torch.zeros(2, 1, 1, 3)] * 2, [log_omega, torch.zeros(2, 1, 3)])
    assert q.clamped.tolist() == [2, 0]
    assert (float(q.log_variance.min()), float(q.log_variance.max())) == LOG_FACTOR_RANGE


@pytest.mark.parametrize(
    ("settings", "millions", "outputs", "latent"),
    [
        ({"maps": 9, "side": 3, "channels": (8, 16, 32, 64, 128, 256)}, 4.01, 108, 81),
        ({"maps": 32, "side": 16, "channels": (8, 32, 64, 128, 256)}, None, 2048, 8192),
        ({"maps": 9, "side": 3, "rank": 0, "channels": (8, 16, 32, 64, 128, 256)}, None, (9 + 6) * 9, 81),
    ],
)
def test_golden_numbers_of_the_source(settings, millions, outputs, latent):
    """4 d N encoder outputs ((d^2 + 2 d) N with a full mean), N d^2 latents, 4.01 M parameters (S3)."""
    with torch.device("meta"):
        model = SVAE(ImageSpec((256, 256)), **settings, **FULL)
    assert model.net.outputs == outputs and model.latent == latent
    if millions:
        assert sum(p.numel() for p in model.net.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_conv_head_averages_over_the_other_axis():
    """mu and omega come from row means: a change along a row that keeps its mean changes no latent."""
    torch.manual_seed(0)
    model = SVAE(ImageSpec((16, 16)), maps=1, side=0, head="conv", width=8)
    h = torch.randn(1, 4, 4, 4)  # (B, factors, *grid)
    means, variances = model.net._pooled(h.flatten(1))
    assert means[0].shape == (1, 1, 1, 4) and variances[1].shape == (1, 1, 4)
    torch.testing.assert_close(means[0][0, 0, 0], h[0, 0].mean(1))  # mu: rows
    torch.testing.assert_close(means[1][0, 0, 0], h[0, 1].mean(0))  # nu: columns
    torch.testing.assert_close(variances[0][0, 0], h[0, 2].mean(1))  # log omega
    torch.testing.assert_close(variances[1][0, 0], h[0, 3].mean(0))  # log psi


def test_loss_is_the_negative_elbo_with_the_exact_kl():
    """(nll + KL) / (C prod S); without warm-up."""
    torch.manual_seed(0)
    model = SVAE(ImageSpec((16, 16)), maps=2, width=8, kl_warmup=0)
    x = torch.rand(4, 1, 16, 16) * 2 - 1
    loss, parts = model.training_loss(x, None)
    torch.testing.assert_close(loss, (parts["nll"] + parts["kl"]) / 256)
    torch.testing.assert_close(parts["kl"], model.net.encode(x).rate())


def test_impossible_maps_are_refused():
    """A side that is not the grid's, no maps, a negative side: what, allowed, remedy."""
    spec = ImageSpec((64, 64))
    with pytest.raises(VerisimError, match=r"side=3.*3 halvings is 8x8.*side=0.*head=dense"):
        SVAE(spec, side=3, head="conv", channels=(8, 8, 8))
    with pytest.raises(VerisimError, match="maps=0, rank=1: at least 1 map"):
        SVAE(spec, maps=0)
    with pytest.raises(VerisimError, match="side=-1"):
        SVAE(spec, side=-1)
