"""Planted changes of grey values: what equalisation undoes, and how outliers move black and white."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from verisim.data.equalise import LEVELS, equalisation_table, equalise
from verisim.data.intensity import robust_range
from verisim.metrics.bootstrap import mean_estimate
from verisim.models.anomaly.patches import foreground
from verisim.phantoms import moved_heads
from verisim.phantoms.moved_heads import shown
from verisim.seeding import generator

FULL = (-1024.0, 3071.0)  # HU: CT's whole range, in which equalisation is needed
BACKGROUND = -0.95  # as the detectors have it
BRAIN = (5.0, 65.0)  # HU, fluid to blood
METAL = 3071.0  # HU of an outlier
SHARES = (0.001, 0.002, 0.004, 0.006, 0.01, 0.02)  # of outliers
SEED = 41


def gamma(u: Tensor, power: float) -> Tensor:
    return u.clamp(0, 1) ** power


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {  # of grey values u in [0, 1]
    "gain 0.8": lambda u: 0.8 * u,
    "gain 1.2": lambda u: 1.2 * u,
    "offset +0.05": lambda u: u + 0.05,
    "gamma 0.7": lambda u: gamma(u, 0.7),
    "gamma 1.4": lambda u: gamma(u, 1.4),
}
MIRRORED = "5 to 65 HU mirrored"  # control: not monotone; all else stays as it is


def mirrored(u: Tensor) -> Tensor:
    low, high = ((v - FULL[0]) / (FULL[1] - FULL[0]) for v in BRAIN)
    return torch.where((u > low) & (u < high), low + high - u, u)


def changes(n: int, size: tuple[int, ...]) -> dict[str, Any]:
    """Change -> distances before and after equalisation; n scans, and n of other heads as the reference."""
    heads = moved_heads.make(2 * n, SEED, size)
    x = torch.stack([shown(heads.scan(k, None, 4), FULL) for k in range(2 * n)])
    reference, scans = x[:n], x[n:]
    inside = foreground(reference, BACKGROUND)
    table = equalisation_table(reference, inside)  # the fixed map of a trained detector
    wanted, wanted_equal = reference[:, 0][inside], equalise(reference, table)[:, 0][inside]
    masks = foreground(scans, BACKGROUND)
    own, fixed = _own(scans), equalise(scans, table)
    rows = {}
    for name, change in {"unchanged": lambda u: u, **CHANGES, MIRRORED: mirrored}.items():
        y = (2 * change((scans + 1) / 2) - 1).clamp(-1, 1)
        y_own, y_fixed = _own(y), equalise(y, table)
        columns = {
            "histogram_before": [_w1(a[0][m], wanted) for a, m in zip(y, masks)],
            "histogram_own": [_w1(a[0][m], wanted_equal) for a, m in zip(y_own, masks)],
            "histogram_fixed": [_w1(a[0][m], wanted_equal) for a, m in zip(y_fixed, masks)],
            "pixels_before": _apart(y, scans, masks),
            "pixels_own": _apart(y_own, own, masks),
            "pixels_fixed": _apart(y_fixed, fixed, masks),
        }
        rows[name] = {k: _estimate(v) for k, v in columns.items()}
    return rows


def _own(x: Tensor) -> Tensor:
    """Every scan by the histogram of its own foreground, which is found in the scan as it is, as detectors do."""
    masks = foreground(x, BACKGROUND)
    return torch.cat([equalise(i[None], equalisation_table(i[None], m[None])) for i, m in zip(x, masks)])


def _apart(a: Tensor, b: Tensor, masks: Tensor) -> list[float]:
    """Mean absolute difference of every scan within its mask."""
    return [float((i - j)[0][m].abs().mean()) for i, j, m in zip(a, b, masks)]


def _w1(a: Tensor, b: Tensor) -> float:
    """Distance of two samples' distributions: mean difference of 999 quantiles, on the scale of grey values (2 wide)."""
    q = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    return float((torch.quantile(a.double(), q) - torch.quantile(b.double(), q)).abs().mean())


def _estimate(values: list[float]) -> dict[str, float]:
    x = torch.tensor(values, dtype=torch.float64)
    return mean_estimate(x, 1000, generator("preprocessing-grey")).as_dict()


def ranks(size: tuple[int, ...]) -> dict[str, Any]:
    """A random strictly increasing change that takes levels of the table to others: are the ranks the same, bit for bit?"""
    g = generator("preprocessing-ranks")
    few = LEVELS // 4
    level = torch.randint(few, (1, 1, *size), generator=g)  # of LEVELS, the first quarter
    to = torch.randperm(LEVELS, generator=g)[:few].sort().values  # strictly increasing
    shuffled = to[torch.randperm(few, generator=g)]
    found = {}
    for name, change in (("monotone", to), ("shuffled", shuffled)):
        tables, images = [], []
        for levels in (level, change[level]):
            x = 2 * levels / (LEVELS - 1) - 1
            tables.append(equalisation_table(x, torch.ones(1, *size, dtype=torch.bool)))
            images.append(equalise(x, tables[-1]))
        used = level.unique()
        same = bool(torch.equal(tables[0][0, used], tables[1][0, change[used]]))
        most = float((images[0] - images[1]).abs().max())
        found[name] = {"ranks_identical": same, "most_apart": most, "levels": len(used)}
    return found


def contrast(n: int, size: tuple[int, ...]) -> dict[str, float]:
    """Share of black to white that brain takes (5 to 65 HU), in CT's whole range and equalised."""
    heads = moved_heads.make(n, SEED, size)
    x = torch.stack([shown(heads.scan(k, None, 4), FULL) for k in range(n)])
    table = equalisation_table(x, foreground(x, BACKGROUND))
    ends = shown(torch.tensor(BRAIN), FULL).view(1, 1, 2)
    before, after = (float(v[0, 0, 1] - v[0, 0, 0]) / 2 for v in (ends, equalise(ends, table)))
    return {"before": before, "after": after}


def windows(n: int, size: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Share of outliers of 3071 HU -> by how much of its width the top of the window moves: percentiles, and extremes."""
    heads = moved_heads.make(n, SEED, size)
    x = torch.stack([heads.scan(k, None, 5) for k in range(n)]).flatten()
    order = torch.randperm(len(x), generator=generator("outliers"))
    rows = {}
    clean, extremes = robust_range(x.numpy()), (float(x.min()), float(x.max()))
    for share in SHARES:
        y = x.clone()
        y[order[: round(share * len(x))]] = METAL
        low, high = robust_range(y.numpy())
        moved = max(abs(high - clean[1]), abs(low - clean[0])) / (clean[1] - clean[0])
        rows[f"{share:g}"] = {
            "percentiles": moved,
            "extremes": (float(y.max()) - extremes[1]) / (extremes[1] - extremes[0]),
        }
    return rows
