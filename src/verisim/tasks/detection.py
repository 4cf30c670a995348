"""How good a detector is: scores by structure, AUROC by kind of finding, and how far readers agree (spec 002, A.7 and A.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.agreement import fleiss_kappa
from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights
from verisim.metrics.c2st import auc, pairwise_wins

PERCENTILE = 99.9  # of a structure: nearly "does it exceed a threshold anywhere"; a small bleed is a thousandth of a half


def structure_scores(
    maps: Tensor,  # (B, 1, *S)
    parts: Mapping[str, Tensor],  # name -> (B, 1, *S) bool
    percentile: float = PERCENTILE,  # 100 = the maximum
) -> dict[str, Tensor]:
    """(B,) float64 for each part: this percentile of the map within it; 0 where the part is empty."""
    if not 0 <= percentile <= 100:
        raise VerisimError(f"percentile={percentile:g}: it is between 0 and 100 (the maximum).")
    found = {}
    for name, mask in parts.items():
        values = [m[k].double().numpy() for m, k in zip(maps.cpu(), mask)]
        found[name] = torch.tensor([np.percentile(v, percentile) if len(v) else 0.0 for v in values]).double()
    return found


def pixel_scores(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """How well each map finds its own finding: "auroc" and "ap" (average precision), (B,) float64, over its pixels.

    maps (B, 1, *S); masks (B, 1, *S) bool, with pixels of both kinds. Ties count half; chance is 0.5, and for "ap" the
    finding's share of the pixels. VerisimError for an empty or full mask.
    """
    from scipy.stats import rankdata

    values, truth = maps.double().flatten(1).cpu().numpy(), masks.flatten(1).cpu().numpy()
    found, n = truth.sum(1), truth.shape[1]
    if not ((found > 0) & (found < n)).all():
        raise VerisimError("pixel_scores: every mask needs pixels within the finding and outside of it.")
    above = (rankdata(values, axis=1) * truth).sum(1) - found * (found + 1) / 2  # pairs won (Mann-Whitney)
    marked = rankdata(-values, "max", axis=1)  # pixels at or above each one
    precision = [(rankdata(-v[t], "max") / m[t]).mean() for v, t, m in zip(values, truth, marked)]
    return {"auroc": torch.from_numpy(above / (found * (n - found))), "ap": torch.tensor(precision).double()}


def grouped_auroc(
    scores: Tensor,  # (n,) larger = more abnormal
    abnormal: Tensor,  # (n,) bool
    groups: Sequence[str]
    | None = None,  # whose decision it is, e.g. the scan of two hemispheres; drawn as one
    *,
    seed: int = 0,
    draws: int = 1000,
) -> Estimate:
    """AUROC with a bootstrap interval over groups. VerisimError unless both kinds occur."""
    return from_draws(*auroc_draws(scores, abnormal, groups, seed=seed, draws=draws))


def auroc_draws(
    scores: Tensor,
    abnormal: Tensor,
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    draws: int = 1000,
) -> tuple[float, Tensor]:
    """The AUROC and its bootstrap draws (B,): the same seed and groups give the same resamples to every detector.

    A resample without decisions of both kinds is left out. VerisimError unless both kinds occur.
    """
    abnormal = abnormal.bool()
    if not abnormal.any() or abnormal.all():
        raise VerisimError("AUROC needs decisions of both kinds: normal and abnormal ones.")
    wins = pairwise_wins(scores[abnormal], scores[~abnormal])
    w = resample_weights(len(scores), draws, torch.Generator().manual_seed(seed), groups)
    a, b = w[:, abnormal], w[:, ~abnormal]
    pairs = a.sum(1) * b.sum(1)
    return float(wins.mean()), ((a @ wins) * b).sum(1)[pairs > 0] / pairs[pairs > 0]


def by_kind(
    scores: Tensor,  # (n,)
    labels: Tensor,  # (n,) class indices
    class_names: Sequence[str],
    normal: int = 0,  # class that the others are told from
) -> dict[str, Estimate]:
    """AUROC of every kind of finding that occurs, each against the normal images."""
    found = {}
    for k, name in enumerate(class_names):
        mine = (labels == k) | (labels == normal)
        if k != normal and bool((labels == k).any()):
            found[name] = grouped_auroc(scores[mine], labels[mine] == k)
    return found


def reader_table(reads: Tensor) -> dict[str, Any]:
    """Agreement of an odd number of readers: reads (N, R) bool -> Fleiss' kappa, AUROC of each against the majority.

    A yes-or-no reader has one operating point; the area under its two straight lines is (sensitivity +
    specificity) / 2. The majority contains the reader himself, as in the source.
    """
    if reads.ndim != 2 or reads.shape[1] % 2 == 0:
        raise VerisimError(
            f"reader_table: reads of shape {tuple(reads.shape)}; (scans, readers) with an odd number of readers are "
            f"meant, so that there is a majority."
        )
    reads = reads.bool()
    truth = reads.double().mean(1) > 0.5
    if not truth.any() or truth.all():
        raise VerisimError(
            "reader_table: the readers' majority is the same for all scans, so nothing can be compared."
        )
    each = [auc(r[truth], r[~truth]) for r in reads.double().unbind(1)]
    return {"kappa": fleiss_kappa(reads.long(), 2), "auroc": each, "mean_auroc": sum(each) / len(each)}
