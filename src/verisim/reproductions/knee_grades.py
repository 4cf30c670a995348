"""Does a reconstruction show the grade of its original? Per system and grade (K-E7; only eyeballed in source 001)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from verisim.metrics.bootstrap import Estimate, from_se, tie
from verisim.reproductions.knee_claims import as_text
from verisim.reproductions.result import Claim


def grade_rows(numbers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """system -> grade -> {"n", "agreement" (mean over seeds; None without images), "toward" (per seed)}."""
    found: dict[str, dict[str, Any]] = {}
    for name, row in numbers["reconstruction"].items():
        for grade, told in row.get("labels", {}).items():
            cell = found.setdefault(name.split("@")[0], {}).setdefault(grade, {"n": told["n"], "each": []})
            cell["each"].append((told["agreement"], told["toward"]))
    return {s: {g: _cell(c) for g, c in rows.items()} for s, rows in found.items()}


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    each = [a for a, _ in cell["each"] if a is not None]
    mean = sum(each) / len(each) if each else None
    return {"n": cell["n"], "agreement": mean, "toward": [t for _, t in cell["each"]]}


def agreement(cell: Mapping[str, Any]) -> Estimate:
    """Share of n images with its 95 % interval (Agresti and Coull: two successes and two failures are added)."""
    n, p = cell["n"], cell["agreement"]
    smooth = (p * n + 2) / (n + 4)
    return Estimate(p, *_clipped(from_se(smooth, math.sqrt(smooth * (1 - smooth) / (n + 4)))))


def _clipped(e: Estimate) -> tuple[float, float, float]:
    return max(0.0, e.low), min(1.0, e.high), e.se


def grade_claims(numbers: Mapping[str, Any], size: int) -> list[Claim]:
    """IntroVAE changes the grade more often than the VAE does, as the source saw by eye; undecided where they tie."""
    rows = grade_rows(numbers)
    if not {"K-S1", "K-S8"} <= set(rows):
        return []
    vae, intro = (agreement(rows[s]["all"]) for s in ("K-S1", "K-S8"))
    return [
        Claim(
            f"grades@{size}",
            "IntroVAE returns a knee of another grade more often than the VAE",
            "source 001, section 6 S8 (by eye)",
            None if tie(vae, intro) else intro.value < vae.value,
            f"share of unchanged grades: {as_text('K-S8', intro)}, {as_text('K-S1', vae)}",
        )
    ]
