"""An image beside its anomaly map and both together."""

from __future__ import annotations

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
