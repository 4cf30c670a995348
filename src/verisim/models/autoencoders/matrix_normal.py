"""Matrix-variate normal latents of the spatial VAE, in 2D and 3D (source 001 section 6 S3, its eq 4.5, A.4).

Map k of side d, one factor per axis (mu, nu in 2D; three in 3D), diagonal Omega_k and Psi_k:

    z_k[i, j] = mu_k[i] nu_k[j] + sqrt(omega_k[i] psi_k[j]) eps[i, j]

so no Kronecker product is formed. The covariance of vec(z_k), columns stacked, is diag(psi) kron diag(omega);
the source prints the other order. Rank r sums r such outer products in the mean; rank 0 has a full mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.models.autoencoders.gaussian import Posterior, clamped

LOG_FACTOR_RANGE = (-8.0, 4.0)  # of log omega and log psi; it also bounds their scale gauge (c w, psi / c)


def outer(factors: list[Tensor]) -> Tensor:
    """prod_a factors[a][..., i_a]: vectors (..., d_a) per axis -> (..., d_1, d_2[, d_3])."""
    whole = factors[0]
    for f in factors[1:]:
        whole = whole[..., None] * f.view(*f.shape[:-1], *[1] * (whole.ndim - f.ndim + 1), f.shape[-1])
    return whole


def outer_sum(factors: list[Tensor]) -> Tensor:
    """sum_a factors[a][..., i_a], likewise: the logarithm of outer(exp(factors))."""
    whole = factors[0]
    for f in factors[1:]:
        whole = whole[..., None] + f.view(*f.shape[:-1], *[1] * (whole.ndim - f.ndim + 1), f.shape[-1])
    return whole


def matrix_normal_kl(mean_square: Tensor, log_factors: list[Tensor]) -> Tensor:
    """KL to N(0, I) in nats of each map, from ||M||^2 (...,) and log omega, log psi (..., d_a).

    1/2 [(sum omega)(sum psi) + ||M||^2 - n - sum_a (n / d_a) sum_i log omega_a[i]], n = prod d_a. For
    rank 1, ||M||^2 = ||mu||^2 ||nu||^2. The source has no KL; this one is exact.
    """
    n = math.prod(f.shape[-1] for f in log_factors)
    trace = math.prod((f.exp().sum(-1) for f in log_factors), start=torch.ones_like(mean_square))
    log_det = sum(((n / f.shape[-1]) * f.sum(-1) for f in log_factors), start=torch.zeros_like(mean_square))
    return 0.5 * (trace + mean_square - n - log_det)


@dataclass(frozen=True)
class MatrixNormal(Posterior):
    """N maps with independent entries whose means and variances are products over the axes."""

    mean_square: Tensor  # (B, N), ||M_k||^2
    log_factors: tuple[Tensor, ...]  # per axis (B, N, d_a), clamped

    @classmethod
    def from_factors(cls, means: list[Tensor], log_factors: list[Tensor]) -> MatrixNormal:
        """From mu, nu (B, N, r, d_a) or, full, one mean (B, N, *d); and log omega, log psi (B, N, d_a)."""
        kept, counts = zip(*(clamped(f.float(), *LOG_FACTOR_RANGE) for f in log_factors))
        means = [m.float() for m in means]
        if len(means) == 1:  # full mean
            mean = means[0]
            mean_square = mean.square().flatten(2).sum(2)
        else:
            mean = outer(means).sum(2)  # (B, N, *d)
            grams = [m @ m.mT for m in means]  # (B, N, r, r): <mu_r, mu_s>
            mean_square = math.prod(grams, start=torch.ones_like(grams[0])).sum((2, 3))
        return cls(
            mean.flatten(1),
            outer_sum(list(kept)).flatten(1),
            torch.stack(counts).sum(0),
            mean_square,
            tuple(kept),
        )

    def rate(self) -> Tensor:
        """Exact KL to N(0, I) in nats per image (B,): matrix_normal_kl summed over maps."""
        return matrix_normal_kl(self.mean_square, list(self.log_factors)).sum(1)
