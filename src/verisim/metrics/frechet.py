"""Frechet distance between two feature sets, in float64, without a matrix square root.

FD = |mu_x - mu_y|^2 + tr Sx + tr Sy - 2 tr (Sx Sy)^(1/2)          (Heusel 2017, eq. 6)

With Sx = A^T A and Sy = B^T B the last trace is the sum of the singular values of A B^T: real and
non-negative by construction. For N < D that matrix is only N x N.
Only features of Inception-v3 make it an "FID"; everything else is "FD(<network>)".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_se, group_index


def check_features(x: Tensor, what: str, least: int = 2) -> Tensor:
    """x (N, D) as float64, finite, with at least `least` rows; else VerisimError."""
    if x.ndim != 2:
        raise VerisimError(f"{what}: features must be (N, D), got {tuple(x.shape)}.")
    if len(x) < least:
        raise VerisimError(f"{what}: {len(x)} images, at least {least} are needed. Add images.")
    if not torch.isfinite(x).all():
        raise VerisimError(f"{what}: features hold NaN or Inf. Check the images with 'verisim data check'.")
    return x.double()


def _factor(x: Tensor) -> Tensor:
    """A with A^T A = covariance (divisor N - 1): (N, D), or (D, D) when N is much larger than D."""
    a = (x - x.mean(0)) / (len(x) - 1) ** 0.5  # (N, D)
    n, d = a.shape
    return torch.linalg.qr(a, mode="r").R if n > 1.5 * d else a


def _distance(mu_x: Tensor, a: Tensor, mu_y: Tensor, b: Tensor) -> float:
    cross = torch.linalg.svdvals(a @ b.T).sum()  # tr (Sx Sy)^(1/2)
    fd = (mu_x - mu_y).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return max(float(fd), 0.0)  # >= 0 in exact arithmetic


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """FD between feature sets x (N, D) and y (M, D), N, M >= 2.

    Defined for N < D, identical sets (0 up to rounding) and constant features. Biased upwards by about
    1 / N: compare only at equal N, or read `frechet_estimate`.
    """
    x, y = check_features(x, "FD, first set"), check_features(y, "FD, second set")
    if x.shape[1] != y.shape[1]:
        raise VerisimError(f"FD: {x.shape[1]} features against {y.shape[1]}. Use one network for both.")
    return _distance(x.mean(0), _factor(x), y.mean(0), _factor(y))


def frechet_from_moments(mu_x: Tensor, cov_x: Tensor, mu_y: Tensor, cov_y: Tensor) -> float:
    """FD between two Gaussians with means (D,) and covariances (D, D)."""
    return _distance(mu_x.double(), _root(cov_x), mu_y.double(), _root(cov_y))


def _root(cov: Tensor) -> Tensor:
    """F with F^T F = cov; refuses a matrix that is no covariance."""
    lam, v = torch.linalg.eigh(cov.double())
    if float(lam.min()) < -1e-8 * max(float(lam.max()), 1e-300):
        raise VerisimError(f"FD: a covariance has the negative eigenvalue {float(lam.min()):.3g}.")
    return lam.clamp_min(0).sqrt()[:, None] * v.T


def _folds(n: int, folds: int, generator: torch.Generator, groups: Sequence[str] | None) -> Tensor:
    """(n,) fold of each item; groups stay together and fold sizes are balanced."""
    index = group_index(n, groups)
    order = torch.randperm(int(index.max()) + 1, generator=generator)
    fold_of_group = torch.empty_like(order)
    fold_of_group[order] = torch.arange(len(order)) % folds
    return fold_of_group[index]


def frechet_estimate(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    groups_y: Sequence[str] | None = None,
    folds: int = 10,
) -> tuple[Estimate, float]:
    """(plug-in FD with interval, bias-corrected FD) by the delete-a-fold jackknife over both sets.

    x (N, D) fakes, y (M, D) reals with optional patients `groups_y`. A bootstrap would count images twice
    and so inflate FD; leaving folds out does not. Corrected = value - jackknife bias; it may be below 0.
    """
    value = frechet_distance(x, y)
    x, y = x.double(), y.double()
    variance, bias = 0.0, 0.0
    for side, (data, groups) in enumerate(((x, None), (y, groups_y))):
        if len(data) < 2 * folds:
            raise VerisimError(f"FD interval: {len(data)} images, at least {2 * folds} are needed.")
        fold = _folds(len(data), folds, generator, groups)
        other = y if side == 0 else x
        fixed = (other.mean(0), _factor(other))
        theta = []
        for f in range(int(fold.max()) + 1):
            kept = data[fold != f]
            theta.append(_distance(kept.mean(0), _factor(kept), *fixed))
        t = torch.tensor(theta, dtype=torch.float64)
        g = len(theta)
        variance += float((g - 1) / g * (t - t.mean()).square().sum())
        bias += (g - 1) * (float(t.mean()) - value)
    return from_se(value, variance**0.5), value - bias
