"""Are samples copies of training images? Nearest training image of each sample, against held-out reals.

A generator that has learned is no closer to its training images than new patients' images are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Z95
from verisim.metrics.frechet import check_features


@dataclass(frozen=True)
class Memorisation:
    """Distances are root-mean-square per dimension, so that they do not grow with image size."""

    fake_median: float  # median distance fake -> nearest training image
    test_median: float  # the same for held-out real images
    threshold: float  # 5th percentile of test -> train: nearer than this is suspicious
    flag: bool  # fake_median < threshold
    share_below: float  # share of fakes nearer than the threshold; 0.05 is expected
    share_low: float  # Wilson 95 % interval of share_below
    share_high: float
    ratio_fake: float  # median of nearest / second nearest: a copy has a small one, a smooth image not
    ratio_test: float
    nearest: list[dict]  # closest pairs first: {"fake": i, "train": j, "distance": d}
    n_fake: int
    n_train: int
    n_test: int


def nearest_two(x: Tensor, train: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Distances (N, 2) to the two nearest rows of train (M, D) and the index (N,) of the nearest."""
    values, index = [], []
    for part in x.split(chunk):
        top = torch.cdist(part, train).topk(2, dim=1, largest=False)
        values.append(top.values)
        index.append(top.indices[:, 0])
    d = torch.cat(values)
    i = torch.cat(index)
    d[:, 0] = (x - train[i]).norm(dim=1)  # exact for copies, where the expanded square loses digits
    return d / x.shape[1] ** 0.5, i


def memorisation(fake: Tensor, train: Tensor, test: Tensor, n_nearest: int = 8) -> Memorisation:
    """Compare fake (N, D) -> train (M, D) with test (K, D) -> train; pixels or features, flattened."""
    fake = check_features(fake, "memorisation, fakes", 1)
    train = check_features(train, "memorisation, training images", 2)
    test = check_features(test, "memorisation, held-out images", 20)
    if n_nearest < 1:
        raise VerisimError(f"memorisation: {n_nearest} nearest pairs asked for; at least 1.")
    d_fake, index = nearest_two(fake, train)
    d_test, _ = nearest_two(test, train)
    threshold = float(torch.quantile(d_test[:, 0], 0.05))
    below = int((d_fake[:, 0] < threshold).sum())
    low, high = wilson(below, len(fake))
    order = d_fake[:, 0].argsort()[:n_nearest].tolist()
    return Memorisation(
        fake_median=float(d_fake[:, 0].median()),
        test_median=float(d_test[:, 0].median()),
        threshold=threshold,
        flag=float(d_fake[:, 0].median()) < threshold,
        share_below=below / len(fake),
        share_low=low,
        share_high=high,
        ratio_fake=_ratio(d_fake),
        ratio_test=_ratio(d_test),
        nearest=[{"fake": i, "train": int(index[i]), "distance": float(d_fake[i, 0])} for i in order],
        n_fake=len(fake),
        n_train=len(train),
        n_test=len(test),
    )


def _ratio(d: Tensor) -> float:
    return float((d[:, 0] / d[:, 1].clamp_min(1e-12)).median())


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson 95 % interval of a proportion; stays inside [0, 1] and works for 0 and n successes."""
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high
