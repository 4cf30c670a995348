"""Precision, recall, density and coverage with k nearest neighbours (Naeem 2020, eqs. 2-8).

Precision: share of fakes inside the real manifold. Recall: share of reals inside the fake manifold.
Density: how deep fakes sit among reals (can exceed 1). Coverage: share of reals with a fake close by.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, mean_estimate
from verisim.metrics.frechet import check_features


def distances(x: Tensor, y: Tensor) -> Tensor:
    """(N, M) Euclidean distances in float64, computed from differences (exact 0 for equal rows)."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def radii(x: Tensor, k: int) -> Tensor:
    """(N,) distance of each row to its k-th nearest other row."""
    return distances(x, x).kthvalue(k + 1, dim=1).values  # the nearest is the row itself


def prdc_indicators(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, Tensor]:
    """Per-image terms whose means are the four measures: precision (M,), recall (N,), density (M,),
    coverage (N,). real (N, D), fake (M, D); both need more than k images.
    """
    real = check_features(real, "PRDC, real set", k + 1)
    fake = check_features(fake, "PRDC, fake set", k + 1)
    if bool((real == real[0]).all()):
        raise VerisimError("PRDC: all real features are the same, so there is no neighbourhood to measure.")
    d = distances(real, fake)  # (N, M)
    in_real = d < radii(real, k)[:, None]  # fake j inside the ball of real i
    in_fake = d < radii(fake, k)[None, :]  # real i inside the ball of fake j
    return {
        "precision": in_real.any(0).double(),
        "recall": in_fake.any(1).double(),
        "density": in_real.double().sum(0) / k,
        "coverage": in_real.any(1).double(),
    }


def prdc(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """The four measures as numbers."""
    return {name: float(v.mean()) for name, v in prdc_indicators(real, fake, k).items()}


def prdc_estimate(
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator,
    k: int = 5,
    draws: int = 1000,
    groups_real: Sequence[str] | None = None,
) -> dict[str, Estimate]:
    """The four measures with bootstrap intervals, the neighbourhoods held fixed."""
    terms = prdc_indicators(real, fake, k)
    over_real = ("recall", "coverage")
    return {
        name: mean_estimate(v, draws, generator, groups_real if name in over_real else None)
        for name, v in terms.items()
    }
