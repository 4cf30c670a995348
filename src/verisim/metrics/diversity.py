"""Mode collapse in one number: mean pairwise distance among fakes over that among reals (1 is right).

Or the mean MS-SSIM of pairs (spec 003, section 16-L): right is what pairs of real images have, neither less nor more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Estimate, from_draws, mean_estimate, resample_weights
from verisim.metrics.frechet import check_features
from verisim.metrics.reconstruction import ms_ssim


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


def pairwise_ms_ssim(
    images: Images, generator: torch.Generator, pairs: int = 200, draws: int = 1000
) -> Estimate:
    """Mean MS-SSIM of `pairs` random pairs of different images, with a bootstrap interval over pairs.

    1 for a set of equal images. Raises VerisimError for fewer than two images, or images below 11 pixels a side.
    """
    n = len(images)
    if n < 2:
        raise VerisimError(f"MS-SSIM of pairs: {n} images, at least 2 are needed.")
    first = torch.randint(n, (pairs,), generator=generator)
    second = (first + torch.randint(1, n, (pairs,), generator=generator)) % n
    parts = [
        ms_ssim(images.pixels[a], images.pixels[b], images.spec)
        for a, b in zip(first.split(16), second.split(16))
    ]
    return mean_estimate(torch.cat(parts), draws, generator)


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
