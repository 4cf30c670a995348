"""An image beside its anomaly map and both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from verisim.reports.figures import figure_png


def overlay_png(image: Tensor, found: Tensor, threshold: float) -> bytes:
    """image (C, *S) in [-1, 1], its map (1, *S), and the image with what lies above the threshold in colour.

    Of a volume the slice with the largest value of the map is shown.
    """
    grey, heat = image.mean(0), found[0]
    if heat.ndim == 3:
        k = int(heat.flatten(1).amax(1).argmax())
        grey, heat = grey[k], heat[k]
    base, values = ((grey + 1) / 2).numpy(), heat.numpy()
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    top = max(2 * threshold, 1e-6)
    axes[0].imshow(base, cmap="gray", vmin=0, vmax=1)
    shown = axes[1].imshow(values, cmap="inferno", vmin=0, vmax=top)
    axes[2].imshow(base, cmap="gray", vmin=0, vmax=1)
    axes[2].imshow(values, cmap="inferno", vmin=0, vmax=top, alpha=0.7 * (values > threshold))
    titles = ("image", "map", f"above {threshold:.3f}, which normal pixels seldom reach")
    for ax, title in zip(axes, titles):
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    figure.colorbar(shown, ax=axes[1], shrink=0.8)
    return figure_png(figure)


def side_by_side_png(images: Tensor, maps: Mapping[str, Tensor], names: Sequence[str]) -> bytes:
    """A row per image (N, H, W) in [-1, 1] with its maps {title: (N, H, W)}; each map has one scale for all rows."""
    figure = Figure(figsize=(1.9 * (1 + len(maps)), 1.9 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(maps), squeeze=False)
    for row, (image, name) in enumerate(zip(images, names)):
        axes[row][0].imshow(image.numpy(), cmap="gray", vmin=-1, vmax=1)
        axes[row][0].set_title(name, fontsize=8)
        for ax, (title, values) in zip(axes[row][1:], maps.items()):
            ax.imshow(values[row].numpy(), cmap="inferno", vmin=0, vmax=float(values.max()) or 1.0)
            ax.set_title(title, fontsize=8)
    for ax in axes.ravel():
        ax.set_axis_off()
    return figure_png(figure)
