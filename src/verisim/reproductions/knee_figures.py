"""Figures of source 001 that show numbers alone: learning curves (6.19a, A.2 to A.16), and rate against distortion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verisim.data.atomic import atomic_write
from verisim.reports.figures import curves_png, read_curves
from verisim.reports.rate_distortion import rate_distortion_png
from verisim.reproductions.knee_bits import hull, mean_image, points

UNIT = 1e5 / 4  # from a squared error on [-1, 1] to the source's 1e-5 on [0, 1]
Curve = tuple[list[float], list[float]]  # steps, values


def write_curves(runs: Sequence[Path], folder: Path) -> None:
    """SYSTEM.curves.png with a line per seed, and learning-curves.png with the first seed of every system.

    `runs`: run folders named SYSTEM@SEED. The error is that of training batches.
    """
    found: dict[str, dict[str, Curve]] = {}
    for run in runs:
        system, _, seed = run.name.partition("@")
        curve = error_curve(run / "metrics.jsonl")
        if curve is not None:
            found.setdefault(system, {})[f"seed {seed}"] = curve
    label = "MSE of training batches x 1e5"
    for system, curves in found.items():
        atomic_write(folder / f"{system}.curves.png", curves_png(system, curves, ylabel=label, log=True))
    if found:
        first = {system: smoothed(next(iter(curves.values()))) for system, curves in found.items()}
        png = curves_png("Learning curves, running mean", first, ylabel=label, log=True)
        atomic_write(folder / "learning-curves.png", png)


def smoothed(curve: Curve) -> Curve:
    """Every value replaced by the mean over a twentieth of the curve to either side."""
    steps, values = curve
    reach = len(values) // 20
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return steps, [sum(w) / len(w) for w in windows]


def error_curve(metrics: Path) -> Curve | None:
    """Mean squared error x 1e5 on [0, 1] by step; None where a run has logged none.

    A model in stages goes on logging its last error in later ones: such a tail is cut off.
    """
    if not metrics.exists():
        return None
    curves = read_curves(metrics, most=99)[0]
    if "mse" not in curves:
        return None
    steps, values = curves["mse"]
    end = len(values)
    while end > 1 and values[end - 1] == values[end - 2]:
        end -= 1
    return steps[:end], [UNIT * v for v in values[:end]]


def write_rate_distortion(numbers: Mapping[str, Any], folder: Path) -> None:
    """rate-distortion.png, if any system has a rate."""
    found, zero = points(numbers), mean_image(numbers)
    if not found:
        return
    kinds = {False: "Gaussian latents", True: "codes"}
    dots = [(p.system, p.bits, p.error, kinds[p.codes]) for p in found]
    lines = []
    for codes, name in kinds.items():
        mine = [p for p in found if p.codes == codes]
        if mine:
            lines.append((name, [(p.bits.value, p.error.value) for p in hull([zero, *mine])]))
    png = rate_distortion_png(dots, lines, "mean squared error x 1e5, held-out patients")
    atomic_write(folder / "rate-distortion.png", png)
