"""Statistics that the effects of phantoms share: 99 % intervals, tests of stated distributions, pure pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.stats import chisquare, kstest, norm
from torch import Tensor

from verisim.metrics.association import regression
from verisim.metrics.bootstrap import Estimate, from_draws, resample_weights
from verisim.seeding import generator

DRAWS, LEVEL = 2000, 0.99


def line(x: Tensor, y: Tensor, groups: Sequence[str] | None = None) -> tuple[Estimate, Estimate]:
    """Intercept and slope of y on x, (n,) each, with 99 % intervals."""
    return regression(x, y, DRAWS, generator("phantoms", "line"), groups, LEVEL)


def mean(x: Tensor) -> Estimate:
    """Mean of (n,) with a 99 % interval."""
    x = x.double()
    w = resample_weights(len(x), DRAWS, generator("phantoms", "mean"))
    return from_draws(float(x.mean()), (w @ x) / w.sum(1), LEVEL)


def spread(x: Tensor) -> Estimate:
    """Standard deviation of (n,) with a 99 % interval."""
    x = x.double() - x.double().mean()
    w = resample_weights(len(x), DRAWS, generator("phantoms", "spread"))
    w = w / w.sum(1, keepdim=True)
    return from_draws(float(x.std()), ((w @ x.square()) - (w @ x).square()).clamp(min=0).sqrt(), LEVEL)


def root(e: Estimate) -> Estimate:
    """Of a mean of squares."""
    value = math.sqrt(max(e.value, 0.0))
    return Estimate(value, math.sqrt(max(e.low, 0.0)), math.sqrt(e.high), e.se / max(2 * value, 1e-12))


def scaled(e: Estimate, by: float) -> Estimate:
    """By a positive number."""
    return Estimate(e.value * by, e.low * by, e.high * by, e.se * by)


def uniform(values: Tensor, low: float, high: float) -> float:
    """p of the Kolmogorov-Smirnov test that values (n,) are uniform on [low, high]; 0 if one lies outside."""
    slack = 1e-5 * (high - low)
    if float(values.min()) < low - slack or float(values.max()) > high + slack:
        return 0.0
    return float(kstest(values.double().numpy(), "uniform", args=(low, high - low)).pvalue)


def shares(labels: Tensor, stated: Sequence[float]) -> float:
    """p of the chi-squared test that classes 0, 1, ... of labels (n,) have these probabilities."""
    count = torch.bincount(labels.long(), minlength=len(stated)).double()
    return float(
        chisquare(
            count.numpy(), (torch.tensor(stated, dtype=torch.float64) / sum(stated) * len(labels)).numpy()
        ).pvalue
    )


def centred(values: Tensor, stated: float) -> float:
    """p of the test that values (n,) have this mean."""
    v = values.double()
    return float(2 * norm.sf(abs(float(v.mean()) - stated) / (float(v.std()) / math.sqrt(len(v)))))


def unrelated(columns: Tensor) -> dict[str, float]:
    """p, for each pair of columns (n, K), that their correlation is 0; large n."""
    r = torch.corrcoef(columns.double().T)
    pairs = [(i, j) for i in range(len(r)) for j in range(i)]
    return {f"{j}, {i}": float(2 * norm.sf(abs(float(r[i, j])) * math.sqrt(len(columns)))) for i, j in pairs}


def pure(codes: Tensor, code: int) -> Tensor:
    """Pixels of a structure whose neighbours all belong to it too; codes (N, 1, *S) -> bool of that shape."""
    outside = (codes != code).float()
    return (F.max_pool2d if codes.ndim == 4 else F.max_pool3d)(outside, 3, 1, 1) == 0


def inner_mean(x: Tensor, where: Tensor, least: int = 10) -> tuple[Tensor, Tensor]:
    """Mean of x over the pixels `where`, image by image, and which images have at least that many; (N,) each."""
    count = where.flatten(1).sum(1)
    return (x * where).double().flatten(1).sum(1) / count.clamp(min=1), count >= least
