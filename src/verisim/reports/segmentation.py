"""Pictures of segmentations: a case with its mask, mean and variance; the grid of steps and ensemble sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from verisim.reports.figures import figure_png


def overlay_png(
    image: Tensor, mean: Tensor, variance: Tensor, title: str, truth: Tensor | None = None
) -> bytes:
    """image (C, *S) in [-1, 1] with the outline of the mask, mean (1, *S) and variance (1, *S) beside it.

    Of a volume the slice with most foreground is shown. truth (1, *S): drawn as a dashed outline.
    """
    grey, p, v = image.mean(0), mean[0], variance[0]
    t = None if truth is None else (truth[0] > 0).float()
    if p.ndim == 3:
        k = int(p.flatten(1).sum(1).argmax())
        grey, p, v, t = grey[k], p[k], v[k], None if t is None else t[k]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].imshow(((grey + 1) / 2).numpy(), cmap="gray", vmin=0, vmax=1)
    _outline(axes[0], p, "#E69F00", "solid")
    if t is not None:
        _outline(axes[0], t, "#56B4E9", "dashed")
    shown = [(axes[1], p, 1.0), (axes[2], v, 0.25)]
    for ax, values, top in shown:
        figure.colorbar(ax.imshow(values.numpy(), cmap="viridis", vmin=0, vmax=top), ax=ax, shrink=0.8)
    words = (f"{title}: mask" + ("" if t is None else " (dashed: truth)"), "mean", "variance")
    for ax, word in zip(axes, words):
        ax.set_title(word, fontsize=9, parse_math=False)
        ax.set_axis_off()
    return figure_png(figure)


def _outline(ax: Any, p: Tensor, colour: str, style: str) -> None:
    if bool((p > 0.5).any()) and not bool((p > 0.5).all()):
        ax.contour(p.numpy(), levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.2)


def sweep_png(rows: Sequence[dict[str, Any]], measure: str = "dice") -> bytes:
    """Cells of tasks.segmentation.sweep as a heat map: steps across, ensemble size upwards."""
    steps = sorted({r["steps"] for r in rows})
    members = sorted({r["members"] for r in rows})
    grid = torch.full((len(members), len(steps)), float("nan"))
    for r in rows:
        grid[members.index(r["members"]), steps.index(r["steps"])] = r[measure]
    figure = Figure(figsize=(1.8 + 0.7 * len(steps), 1.4 + 0.5 * len(members)), layout="constrained")
    ax = figure.add_subplot()
    shown = ax.imshow(grid.numpy(), cmap="viridis", origin="lower", aspect="auto")
    for i, row in enumerate(grid.tolist()):
        for j, value in enumerate(row):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white")
    ax.set_xticks(range(len(steps)), [str(s) for s in steps])
    ax.set_yticks(range(len(members)), [str(m) for m in members])
    ax.set_xlabel("steps")
    ax.set_ylabel("members of the ensemble")
    ax.set_title({"dice": "Dice", "hd95": "HD95"}[measure])
    figure.colorbar(shown, ax=ax)
    return figure_png(figure)
