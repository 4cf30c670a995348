"""Is a mask right, and does its uncertainty know where it is wrong? Source 002, sections 1.2 and C.7.

With A the true and B the predicted foreground, empty masks are decided by rule: both empty, Dice 1 and
HD95 0; one empty, Dice 0 and HD95 the diagonal of the volume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import Tensor

from verisim.errors import VerisimError


def dice(predicted: Tensor, true: Tensor) -> Tensor:
    """2 |A and B| / (|A| + |B|) of masks (B, 1, *S), non-zero = foreground; (B,) float64 in [0, 1]."""
    p, t = _pair(predicted, true)
    both = (p & t).flatten(1).sum(1).double()
    total = (p.flatten(1).sum(1) + t.flatten(1).sum(1)).double()
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


def hd95(predicted: Tensor, true: Tensor, spacing: tuple[float, ...] | None = None) -> Tensor:
    """95th percentile of both directed lists of surface distances together, of masks (B, 1, *S); (B,) float64.

    In the unit of `spacing` (mm per voxel along each axis of S; None = voxels). A surface voxel is one of the mask
    with a face neighbour outside of it, the border of the volume counting as outside.
    """
    p, t = _pair(predicted, true)
    step = (1.0,) * (p.ndim - 2) if spacing is None else tuple(spacing)
    if len(step) != p.ndim - 2 or min(step) <= 0:
        raise VerisimError(f"spacing={spacing}: give {p.ndim - 2} positive numbers, one per axis.")
    pairs = zip(p.cpu(), t.cpu())
    return torch.tensor([_hd95(a[0].numpy(), b[0].numpy(), step) for a, b in pairs], dtype=torch.float64)


def _hd95(a: np.ndarray, b: np.ndarray, step: tuple[float, ...]) -> float:
    if not a.any() and not b.any():
        return 0.0
    if not a.any() or not b.any():
        return math.sqrt(sum((n * s) ** 2 for n, s in zip(a.shape, step)))
    both = np.concatenate([surface_distances(a, b, step), surface_distances(b, a, step)])
    return float(np.percentile(both, 95))


def surface_distances(a: np.ndarray, b: np.ndarray, step: tuple[float, ...]) -> np.ndarray:
    """Distance of every surface voxel of mask a (bool, S) to the nearest one of b, in the unit of `step`."""
    inner_a, inner_b = binary_erosion(a), binary_erosion(b)  # cross-shaped: face neighbours
    return distance_transform_edt(~(b & ~inner_b), sampling=step)[a & ~inner_a]


@dataclass(frozen=True)
class Calibration:
    """How often a mask is wrong where its variance is low, and where it is high."""

    edges: tuple[float, ...]  # of the bins of variance, bins + 1
    count: tuple[int, ...]  # voxels per bin
    error_rate: tuple[float, ...]  # share of wrong voxels per bin; nan = no voxels
    auroc: float  # how often a wrong voxel has a higher variance than a right one; nan = none is wrong, or all are

    def as_dict(self) -> dict[str, object]:
        """JSON values; nan becomes None."""
        rates = [None if math.isnan(r) else r for r in self.error_rate]
        auroc = None if math.isnan(self.auroc) else self.auroc
        return {"edges": list(self.edges), "count": list(self.count), "error_rate": rates, "auroc": auroc}


def variance_calibration(
    variance: Tensor,  # any shape, in [0, 0.25]
    wrong: Tensor,  # bool, same shape: prediction differs from the truth
    bins: int = 5,  # of equal width on [0, 0.25]; the value 0 has a bin of its own before them
) -> Calibration:
    """Error rate by bin of variance, and AUROC of the variance for errors."""
    v, w = variance.flatten().double(), wrong.flatten().bool()
    if v.shape != w.shape or bins < 1:
        raise VerisimError(
            f"{len(v)} variances for {len(w)} voxels and {bins} bins; one each and at least one bin are meant."
        )
    top = (0.25 * torch.arange(1, bins + 1) / bins).double()
    place = torch.bucketize(v, torch.cat([torch.zeros(1).double(), top[:-1]]))  # 0: v <= 0; k: (k-1, k]
    count = torch.bincount(place, minlength=bins + 1)
    bad = torch.bincount(place, weights=w.double(), minlength=bins + 1)
    rates = [float(b / c) if c else math.nan for b, c in zip(bad, count)]
    return Calibration((0.0, 0.0, *top.tolist()), tuple(count.tolist()), tuple(rates), _auroc(v, w))


def _auroc(score: Tensor, positive: Tensor) -> float:
    """P(score of a positive > of a negative) + half of ties; nan if there are none of either."""
    n_pos = int(positive.sum())
    n_neg = len(positive) - n_pos
    if not n_pos or not n_neg:
        return math.nan
    _, place, count = score.unique(return_inverse=True, return_counts=True)
    mid = count.cumsum(0).double() - (count.double() - 1) / 2  # mean rank of each value, from 1
    return float((mid[place][positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def _pair(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """Both as bool; VerisimError unless they are masks of one shape."""
    if predicted.shape != true.shape or predicted.ndim < 4 or predicted.shape[1] != 1:
        raise VerisimError(
            f"Masks of shape {tuple(predicted.shape)} and {tuple(true.shape)}: both must be (B, 1, *S) on the same "
            f"grid."
        )
    return predicted > 0, true > 0
