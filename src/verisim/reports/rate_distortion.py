"""Rate against distortion: one point per autoencoder, one line per family that time sharing reaches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure

from verisim.metrics.bootstrap import Estimate
from verisim.reports.figures import COLOURS, figure_png

Dot = tuple[str, Estimate, Estimate, str]  # name, bits per image, error, family


def rate_distortion_png(
    dots: Sequence[Dot],
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],  # family, its (bits, error) by bits
    ylabel: str,
) -> bytes:
    """Both axes logarithmic, 95 % intervals as bars; families differ in colour and mark."""
    families = list(dict.fromkeys(d[3] for d in dots))
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    ax = figure.add_subplot()
    for i, (name, bits, error, family) in enumerate(sorted(dots, key=lambda d: d[1].value)):
        k = families.index(family)
        ax.plot([bits.low, bits.high], [error.value] * 2, color=COLOURS[k], lw=1.2)
        ax.plot([bits.value] * 2, [error.low, error.high], color=COLOURS[k], lw=1.2)
        ax.plot([bits.value], [error.value], "os^"[k % 3], color=COLOURS[k], ms=6, zorder=3)
        place = (6, 5 if i % 2 == 0 else -12)  # neighbours' names on either side
        ax.annotate(name, (bits.value, error.value), xytext=place, textcoords="offset points", fontsize=8)
    for family, line in lines:
        k = families.index(family)
        ax.plot(*_dense(line), color=COLOURS[k], lw=1.2, ls="--", label=f"{family}, time sharing")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("bits per image")
    ax.set_ylabel(ylabel)
    ax.grid(color="#dddddd", lw=0.6, which="both")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if lines:
        ax.legend(fontsize=8, frameon=False)
    return figure_png(figure)


def _dense(line: Sequence[tuple[float, float]], between: int = 30) -> tuple[list[float], list[float]]:
    """Points along straight pieces, which are curves on logarithmic axes; without the point of 0 bits."""
    x, y = [], []
    for (a, u), (b, v) in pairwise(line):
        for i in range(between + 1):
            t = i / between
            bits = (1 - t) * a + t * b
            if bits > 0:
                x.append(bits)
                y.append((1 - t) * u + t * v)
    return x, y
