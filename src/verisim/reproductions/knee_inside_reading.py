"""Reads estimates out of the numbers of `001-inside`, by system, and gives verdicts on them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from verisim.metrics.bootstrap import Estimate, tie
from verisim.reproductions.knee_claims import mean_over_seeds

VAE, CODES, LARGE, SWEEP = "K-S1", "K-S7", "K-S2", "K-S9.2"
Rows = Mapping[str, Any]  # SYSTEM@SEED -> row
Numbers = Mapping[str, Any]  # "rows", "baselines", "ranking", "selection"


def of(rows: Rows, system: str, *path: str) -> Estimate | None:
    """An estimate of a system, its mean over seeds; None if nobody measured it."""
    parts = []
    for row in runs_of(rows, system).values():
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            parts.append(value)
    return mean_over_seeds(parts)


def runs_of(rows: Rows, system: str) -> Rows:
    return {n: r for n, r in rows.items() if n.split("@")[0] == system}


def systems_of(rows: Rows) -> list[str]:
    return list(dict.fromkeys(n.split("@")[0] for n in rows))


def at_least(e: Estimate, limit: float) -> bool | None:
    """Is it? None where the interval holds the limit."""
    return True if e.low >= limit else False if e.high < limit else None


def all_of(verdicts: Iterable[bool | None]) -> bool | None:
    """False if any is, else None if any is, else True."""
    each = list(verdicts)
    return False if False in each else None if None in each else True


def above(a: Estimate, b: Estimate) -> bool | None:
    """Is a larger than b? None where they tie."""
    return None if tie(a, b) else a.value > b.value
