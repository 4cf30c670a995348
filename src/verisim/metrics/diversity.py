"""Mode collapse in one number: mean pairwise distance among fakes over that among reals (1 is right)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights
from verisim.metrics.frechet import check_features


def mean_pairwise(x: Tensor) -> float:
    """Mean Euclidean distance over pairs of different rows of x (N, D)."""
    return float(torch.nn.functional.pdist(check_features(x, "pairwise distance")).mean())


def diversity_ratio(
    fake: Tensor,
    real: Tensor,
    generator: torch.Generator,
    draws: int = 1000,
    groups_real: Sequence[str] | None = None,
    most: int = 500,
) -> Estimate:
    """mean_pairwise(fake) / mean_pairwise(real) with a bootstrap interval; uses the first `most` of each."""
    fake = check_features(fake, "diversity, fake set")[:most]
    real = check_features(real, "diversity, real set")[:most]
    groups = None if groups_real is None else list(groups_real)[:most]
    top, tops = _resampled(fake, draws, generator, None)
    bottom, bottoms = _resampled(real, draws, generator, groups)
    if bottom == 0:
        raise VerisimError("Diversity: all real images are the same, so nothing can be compared with them.")
    ratio = tops / bottoms
    return from_draws(top / bottom, ratio[torch.isfinite(ratio)])


def _resampled(
    x: Tensor, draws: int, generator: torch.Generator, groups: Sequence[str] | None
) -> tuple[float, Tensor]:
    """Mean pairwise distance and its bootstrap draws (B,), pairs of an image with itself left out."""
    d = torch.cdist(x, x)
    d.fill_diagonal_(0)
    w = resample_weights(len(x), draws, generator, groups)
    pairs = w.sum(1).square() - w.square().sum(1)
    n = len(x)
    return float(d.sum() / (n * (n - 1))), ((w @ d) * w).sum(1) / pairs
