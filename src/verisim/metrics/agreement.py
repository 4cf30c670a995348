"""Shares with honest intervals, and how far two or more readers agree beyond chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.bootstrap import Z95, Estimate


def wilson(successes: float, n: float) -> Estimate:
    """Share successes / n with Wilson's 95 % score interval (1927); n may be an effective sample size.

    Stays within [0, 1] and has a width above 0 also for 0 or n successes. `se` is half the width over 1.96.
    """
    if not (n > 0 and 0 <= successes <= n):
        raise VerisimError(f"{successes:g} of {n:g} is no share: 0 <= successes <= n and n > 0 are needed.")
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half), half / Z95)


def clustered_wilson(hits: Sequence[bool], clusters: Sequence[str]) -> Estimate:
    """Wilson's interval where several answers are about one thing (cluster), e.g. one pair of images.

    The number of answers is divided by the design effect: the cluster-robust variance of the share over
    the binomial one, never below 1. Where all answers are the same it cannot be had; then each cluster
    counts once.
    """
    n = len(hits)
    if n == 0 or len(clusters) != n:
        raise VerisimError(f"{n} answers with {len(clusters)} cluster names: at least one of each is needed.")
    p = sum(hits) / n
    sums: Counter[str] = Counter()
    for hit, cluster in zip(hits, clusters):
        sums[cluster] += hit - p  # type: ignore[assignment]
    m = len(sums)
    if p in (0.0, 1.0):
        return wilson(p * m, m)
    robust = (m / (m - 1) if m > 1 else math.inf) * sum(s * s for s in sums.values()) / n**2
    effect = min(max(1.0, robust / (p * (1 - p) / n)), n / m if m > 1 else n)
    return wilson(p * n / effect, n / effect)


def cohen_kappa(a: Tensor, b: Tensor, categories: int, weights: str = "none") -> float:
    """Cohen's kappa of two readers' categories a, b (N,) in 0...categories-1; NaN where not defined.

    kappa = 1 - sum(w * observed) / sum(w * expected); w = [i != j] (Cohen 1960), or (i - j)^2 for ordered
    categories with weights="quadratic" (Cohen 1968). 0 = as by chance, 1 = always the same.
    """
    observed = torch.zeros(categories, categories, dtype=torch.float64)
    observed.index_put_((a, b), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    observed /= max(len(a), 1)
    expected = observed.sum(1, keepdim=True) * observed.sum(0, keepdim=True)
    i = torch.arange(categories, dtype=torch.float64)
    apart = (i[:, None] - i[None, :]).square()
    w = apart if weights == "quadratic" else (apart > 0).double()
    chance = float((w * expected).sum())
    return 1 - float((w * observed).sum()) / chance if chance > 0 else math.nan


def fleiss_kappa(ratings: Tensor, categories: int) -> float:
    """Fleiss' kappa (1971) of ratings (N items, R readers) in 0...categories-1; NaN where not defined."""
    n, r = ratings.shape
    counts = torch.nn.functional.one_hot(ratings, categories).sum(1).double()  # (N, K)
    share = counts.sum(0) / max(n * r, 1)
    agree = (counts * (counts - 1)).sum(1) / (r * (r - 1))  # P_i
    chance = float(share.square().sum())
    return float((agree.mean() - chance) / (1 - chance)) if chance < 1 else math.nan


def mean_pairwise_kappa(ratings: Tensor, categories: int, weights: str = "none") -> float:
    """Mean of Cohen's kappa over all pairs of readers; ratings (N items, R readers)."""
    r = ratings.shape[1]
    pairs = [(i, j) for i in range(r) for j in range(i + 1, r)]
    found = [cohen_kappa(ratings[:, i], ratings[:, j], categories, weights) for i, j in pairs]
    return sum(found) / len(found) if found else math.nan
