"""Pictures of growth: a film of ages, and curves of head circumference and content."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from verisim.models.implicit.development import Rendering
from verisim.reports.figures import COLOURS, figure_png

SIDE = 192  # smallest height in pixels at which a frame is shown
BAND = 14  # pixels of text below
SECONDS = 3.0  # of a film, forwards


def film_gif(shown: Rendering) -> bytes:
    """Frames (slices, or middle slices of volumes) forwards and back; each says its age and that it is synthetic."""
    frames = [
        _frame(x, float(age), bool(beyond))
        for x, age, beyond in zip(
            shown.images.to_range(0.0, 1.0).pixels.numpy(), shown.ages, shown.extrapolated
        )
    ]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:] + frames[-2:0:-1],
        duration=max(40, round(1000 * SECONDS / len(frames))),
        loop=0,
        comment=b"synthetic images, not a patient; made by verisim",
    )
    return buffer.getvalue()


def _frame(x: np.ndarray, age: float, beyond: bool) -> Image.Image:
    """x (C, *S) in [0, 1]."""
    plane = x[0] if x.ndim == 3 else x[0, x.shape[1] // 2]
    scale = max(1, math.ceil(SIDE / plane.shape[0]))
    grey = np.rint(np.kron(plane, np.ones((scale, scale))) * 255).astype(np.uint8)
    image = Image.new("L", (grey.shape[1], grey.shape[0] + BAND))
    image.paste(Image.fromarray(grey))
    words = f"{age:.1f} weeks, synthetic" + (", extrapolated" if beyond else "")
    ImageDraw.Draw(image).text((3, grey.shape[0] + 1), words, fill=255)
    return image


def curve_png(
    ages: Sequence[float],
    extrapolated: Sequence[bool],
    curves: Sequence[tuple[str, Sequence[float]]],  # (label with unit, values)
    at: float | None = None,  # age of the scan
) -> bytes:
    """One panel per curve; ages beyond the trained range are hollow."""
    figure = Figure(figsize=(3.6 * len(curves), 2.9), layout="constrained")
    beyond = np.asarray(extrapolated, dtype=bool)
    for k, (label, values) in enumerate(curves):
        ax = figure.add_subplot(1, len(curves), k + 1)
        t, y = np.asarray(ages), np.asarray(values)
        ax.plot(t, y, color=COLOURS[0], lw=1.4)
        ax.plot(t[~beyond], y[~beyond], "o", ms=4, color=COLOURS[0], label="within the trained ages")
        if beyond.any():
            ax.plot(t[beyond], y[beyond], "o", ms=4, color=COLOURS[1], mfc="white", label="extrapolated")
        if at is not None:
            ax.axvline(at, color="#777777", lw=1, ls=":", label="scan")
        ax.set_xlabel("age, weeks")
        ax.set_ylabel(label)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(fontsize=7, frameon=False)
    return figure_png(figure)
