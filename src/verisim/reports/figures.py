"""Pictures for reports, as PNG bytes: sample grids, nearest neighbours, curves, dot plots.

Drawn without any display and without matplotlib's global state. Colours are those of Okabe and Ito, which
colour-blind readers can tell apart; lines also differ in their dashes.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from verisim.data.mosaic import mosaic
from verisim.data.spec import Images

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
TILE = 96  # smallest width in pixels at which a single image is shown
NOT_LOSSES = {"step", "seconds", "epoch", "lr", "images_per_second", "skipped"}


def grid_png(images: Images, n: int = 24, columns: int = 8) -> bytes:
    """The first n images (mid-slices of volumes) side by side, enlarged without smoothing."""
    shown = images.to_range(-1.0, 1.0).pixels[:n]
    return image_png(mosaic(shown, min(columns, len(shown)), scale=_scale(shown.shape[-1])))


def pairs_png(top: Images, bottom: Images) -> bytes:
    """Image k of `top` above image k of `bottom`; both hold the same number of images."""
    both = torch.cat([top.to_range(-1.0, 1.0).pixels, bottom.to_range(-1.0, 1.0).pixels])
    return image_png(mosaic(both, len(top), scale=_scale(both.shape[-1])))


def _scale(width: int) -> int:
    return max(1, math.ceil(TILE / width))


def image_png(image: Any) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def dots_png(
    rows: Sequence[tuple[str, float, float, float, str]],
    xlabel: str,
    best: float | None = None,
) -> bytes:
    """Dot plot: rows of (label, value, low, high, kind), best on top; kind "control" is drawn hollow."""
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * max(len(rows), 1)), layout="constrained")
    ax = figure.add_subplot()
    for i, (_, value, low, high, kind) in enumerate(rows):
        colour = "#777777" if kind == "control" else COLOURS[0]
        ax.plot([low, high], [i, i], color=colour, lw=2.2, solid_capstyle="butt")
        face = "white" if kind == "control" else colour
        ax.plot([value], [i], "o", ms=7, color=colour, mfc=face, mew=1.8, zorder=3)
    if best is not None:
        ax.axvline(best, color="#009E73", lw=1.4, ls="--", zorder=0)
    ax.set_yticks(range(len(rows)))
    ax.set_yticklabels([_short(r[0]) for r in rows], parse_math=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel(xlabel, parse_math=False)
    return _axes_png(figure, ax)


def curves_png(
    title: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    ylabel: str = "",
    log: bool = False,
) -> bytes:
    """Training curves of one generator: name -> (steps, values); log = a logarithmic axis of values."""
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    ax = figure.add_subplot()
    for i, (name, (steps, values)) in enumerate(curves.items()):
        label = _short(name).lstrip("_") or "value"
        ax.plot(
            steps, values, lw=1.6, label=label, color=COLOURS[i % len(COLOURS)], ls=DASHES[i % len(DASHES)]
        )
    ax.set_title(_short(title), fontsize=10, parse_math=False)
    ax.set_xlabel("training step")
    ax.set_ylabel(ylabel, parse_math=False)
    if log:
        ax.set_yscale("log")
    if len(curves) > 1:
        for text in ax.legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)
    return _axes_png(figure, ax)


def _short(label: str, most: int = 44) -> str:
    clean = " ".join(label.split())
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def _axes_png(figure: Figure, ax: Any) -> bytes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    return figure_png(figure)


def figure_png(figure: Figure) -> bytes:
    """A drawing as PNG on white."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=130, format="png", facecolor="white")
    return buffer.getvalue()


def read_curves(path: Path, most: int = 4) -> tuple[dict[str, tuple[list[float], list[float]]], int]:
    """Loss curves in a metrics.jsonl, "loss" first, at most `most`; and the number of unreadable lines."""
    rows, broken = [], 0
    for line in Path(path).read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the last line of a run that was killed
            broken += 1
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int | float):
            rows.append(row)
        else:
            broken += 1
    keys: dict[str, None] = dict.fromkeys(
        k for r in rows for k, v in r.items() if isinstance(v, int | float) and k not in NOT_LOSSES
    )
    curves = {}
    for key in sorted(keys, key=lambda k: (k != "loss", "loss" not in k))[:most]:
        points = [(r["step"], float(r[key])) for r in rows if isinstance(r.get(key), int | float)]
        curves[key] = ([p[0] for p in points], [p[1] for p in points])
    return curves, broken
