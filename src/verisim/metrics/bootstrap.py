"""Intervals, ties and ranks: how sure is a number, and is a difference one at all?

Images of one patient are not independent, so patients (groups) are resampled, not images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from verisim.errors import VerisimError

Z95 = 1.959963984540054  # standard normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and standard error."""

    value: float
    low: float
    high: float
    se: float  # standard error, for comparing two estimates

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    @staticmethod
    def from_dict(d: Mapping[str, float]) -> Estimate:
        return Estimate(d["value"], d["low"], d["high"], d["se"])


def group_index(n: int, groups: Sequence[str] | None) -> Tensor:
    """(n,) int64: which group each item belongs to; every item is its own group without `groups`."""
    if groups is None:
        return torch.arange(n)
    if len(groups) != n:
        raise VerisimError(f"{len(groups)} group names for {n} items. Give one (patient) per item.")
    known = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    return torch.tensor([known[g] for g in groups])


def resample_weights(
    n: int, draws: int, generator: torch.Generator, groups: Sequence[str] | None = None
) -> Tensor:
    """(draws, n) float64: how often each item occurs in each resample; whole groups are drawn."""
    index = group_index(n, groups)
    g = int(index.max()) + 1
    pick = torch.randint(g, (draws, g), generator=generator)  # g groups with replacement
    counts = torch.zeros(draws, g, dtype=torch.float64)
    counts.scatter_add_(1, pick, torch.ones_like(pick, dtype=torch.float64))
    return counts[:, index]


def from_draws(value: float, draws: Tensor, level: float = 0.95) -> Estimate:
    """Percentile interval of bootstrap draws (B,) around the plug-in value."""
    draws = draws.double()
    tail = (1 - level) / 2
    q = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    se = float(draws.std()) if len(draws) > 1 else 0.0
    return Estimate(float(value), float(q[0]), float(q[1]), se)


def from_se(value: float, se: float) -> Estimate:
    """Normal 95 % interval."""
    return Estimate(float(value), float(value - Z95 * se), float(value + Z95 * se), float(se))


def mean_estimate(
    x: Tensor, draws: int, generator: torch.Generator, groups: Sequence[str] | None = None
) -> Estimate:
    """Mean of x (n,) with a bootstrap interval over items or groups."""
    x = x.double()
    w = resample_weights(len(x), draws, generator, groups)
    return from_draws(float(x.mean()), (w @ x) / w.sum(1))


def difference(a: Tensor, b: Tensor) -> Estimate:
    """a - b from paired bootstrap draws (B,) each: use one resample of the shared real images for both."""
    return from_draws(float(a.mean() - b.mean()), a - b)


def tie(a: Estimate, b: Estimate) -> bool:
    """True if the 95 % interval of a - b, taken as independent, covers 0."""
    return abs(a.value - b.value) <= Z95 * math.hypot(a.se, b.se)


def pool(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over training seeds; its variance adds the spread between seeds to the sampling error.

    var = mean(se_i^2) + var_between / S. The sampling errors of the seeds share the same real images, so
    they are not divided by S (conservative). The interval uses Student's t when the seeds' spread rules.
    """
    if not estimates:
        raise VerisimError("Nothing to pool: no seed has this number.")
    s = len(estimates)
    mean = sum(e.value for e in estimates) / s
    within = sum(e.se**2 for e in estimates) / s
    if s == 1:
        return estimates[0]
    between = sum((e.value - mean) ** 2 for e in estimates) / (s - 1) / s
    total = within + between
    if total == 0:
        return Estimate(mean, mean, mean, 0.0)
    freedom = (s - 1) * (total / between) ** 2 if between > 0 else math.inf  # Welch-Satterthwaite
    half = _t_quantile(freedom) * math.sqrt(total)
    return Estimate(mean, mean - half, mean + half, half / Z95)


def _t_quantile(freedom: float) -> float:
    from scipy.stats import t

    return Z95 if math.isinf(freedom) else float(t.ppf(0.975, freedom))


def rank_with_ties(
    estimates: Mapping[str, Estimate],
    badness: Callable[[float], float] = lambda v: v,
) -> list[dict]:
    """Best first; an entry shares the rank of the best entry of its group while it ties with that one.

    `badness` maps a value to a number of which less is better (slope at most 1). Ranks are competition
    ranks (1, 1, 3). Ties are not transitive, so `ties` lists every entry that this one ties with.
    """
    bad = {n: replace(e, value=badness(e.value)) for n, e in estimates.items()}
    names = sorted(bad, key=lambda n: bad[n].value)
    rows: list[dict] = []
    leader, rank = "", 0
    for position, name in enumerate(names, start=1):
        if not leader or not tie(bad[leader], bad[name]):
            leader, rank = name, position
        tied = [o for o in names if o != name and tie(bad[o], bad[name])]
        rows.append({"name": name, "rank": rank, "ties": tied, **estimates[name].as_dict()})
    return rows
