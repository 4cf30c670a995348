"""Kernel distance: squared MMD with the cubic kernel k(a, b) = (a.b / D + 1)^3, unbiased (KID).

Sees every moment up to the third, so unlike a linear kernel it notices a wrong spread. Unbiased at any
number of images (Binkowski 2018, eq. 4); it may be slightly negative when the sets agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, group_index, resample_weights
from verisim.metrics.frechet import check_features


def polynomial_kernel(x: Tensor, y: Tensor, degree: int = 3, coef: float = 1.0) -> Tensor:
    """(N, M): (x.y / D + coef)^degree in float64."""
    return (x.double() @ y.double().T / x.shape[1] + coef) ** degree


def _between_groups(k: Tensor, w: Tensor, group: Tensor) -> Tensor:
    """(B,) mean of k_ij over pairs of different groups with weights w_i w_j; k (n, n), w (B, n)."""
    member = torch.nn.functional.one_hot(group).double()  # (n, G)
    apart = k * (group[:, None] != group[None, :])
    pairs = w.sum(1).square() - (w @ member).square().sum(1)
    return ((w @ apart) * w).sum(1) / pairs


def mmd_unbiased(kxx: Tensor, kyy: Tensor, kxy: Tensor) -> float:
    """Unbiased squared MMD from the kernel matrices (N, N), (M, M), (N, M)."""
    n, m = kxy.shape
    xx = (kxx.sum() - kxx.trace()) / (n * (n - 1))
    yy = (kyy.sum() - kyy.trace()) / (m * (m - 1))
    return float(xx + yy - 2 * kxy.mean())


def kernel_distance(x: Tensor, y: Tensor, degree: int = 3) -> float:
    """KID between feature sets x (N, D), y (M, D); N, M >= 2. Not multiplied by anything."""
    x, y = _pair(x, y)
    k = polynomial_kernel
    return mmd_unbiased(k(x, x, degree), k(y, y, degree), k(x, y, degree))


def kernel_estimate(
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    draws: int = 1000,
    groups_y: Sequence[str] | None = None,
) -> Estimate:
    """KID with a bootstrap interval over fakes x and (groups of) reals y.

    A resample meets an image or patient again in its copy; such pairs are left out of the draws, which
    would be too large otherwise, and the draws are moved so that they describe the unbiased value.
    """
    x, y = _pair(x, y)
    kxx, kyy, kxy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    gx, gy = group_index(len(x), None), group_index(len(y), groups_y)

    def statistic(wx: Tensor, wy: Tensor) -> Tensor:
        cross = ((wx @ kxy) * wy).sum(1) / (wx.sum(1) * wy.sum(1))
        return _between_groups(kxx, wx, gx) + _between_groups(kyy, wy, gy) - 2 * cross

    value = mmd_unbiased(kxx, kyy, kxy)
    once = statistic(torch.ones_like(kxy[:, :1]).T, torch.ones_like(kxy[:1]))
    wx = resample_weights(len(x), draws, generator)
    wy = resample_weights(len(y), draws, generator, groups_y)
    values = statistic(wx, wy) - once + value
    return from_draws(value, values[torch.isfinite(values)])


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = check_features(x, "KID, first set"), check_features(y, "KID, second set")
    if x.shape[1] != y.shape[1]:
        raise VerisimError(f"KID: {x.shape[1]} features against {y.shape[1]}. Use one network for both.")
    return x, y
