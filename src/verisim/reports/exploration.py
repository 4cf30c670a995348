"""Pictures and the page of `verisim explore`: latents as rows, steps as columns, swapped codes, sliders over frames."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from verisim.data.atomic import atomic_write
from verisim.data.mosaic import mosaic
from verisim.reports.figures import COLOURS, figure_png, image_png
from verisim.reports.html import template
from verisim.tasks.code_probe import CodeUse
from verisim.tasks.code_swap import Region, Swap
from verisim.tasks.exploration import LatentUse, Traversal


@dataclass(frozen=True)
class Slider:
    """One strip of frames that a slider walks through."""

    title: str
    detail: str
    strip: bytes  # PNG, frames side by side
    labels: list[str]  # one per frame
    start: int  # frame shown first
    heat: bytes = b""  # PNG of where the frames differ
    wide: float = 1.0  # width of a frame over its height

    @property
    def data(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.strip).decode("ascii")

    @property
    def heat_data(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.heat).decode("ascii") if self.heat else ""


def middle(x: Tensor) -> Tensor:
    """(..., H, W): images as they are, the middle slice of volumes (..., D, H, W) given `volume` axes."""
    return x[..., x.shape[-3] // 2, :, :]


def step_text(step: Tensor) -> str:
    """'+1.5 sd', '0 sd'."""
    return f"{float(step):+.3g} sd" if float(step) else "0 sd"


def traversal_png(found: Traversal, use: LatentUse) -> bytes:
    """Latents as rows, steps as columns, and at the end of each row where the latent acts."""
    volume = found.frames.ndim == 6
    frames = middle(found.frames) if volume else found.frames  # (K, F, C, H, W)
    heat = middle(found.heat) if volume else found.heat  # (K, H, W)
    rows, columns = frames.shape[0], frames.shape[1] + 1
    figure = Figure(figsize=(1.05 * columns + 1.2, 1.12 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for k, j in enumerate(found.dims):
        for i in range(columns - 1):
            grey = (frames[k, i].clamp(-1, 1) + 1) / 2  # (C, H, W)
            axes[k, i].imshow(grey.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            if k == 0:
                axes[k, i].set_title(step_text(found.steps[i]), fontsize=8)
        axes[k, -1].imshow(heat[k].numpy(), cmap="inferno", vmin=0)
        axes[k, 0].set_ylabel(f"z{j}\n{float(use.kl[j]):.2f} nats", fontsize=8)
    axes[0, -1].set_title("where", fontsize=8)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    return figure_png(figure)


def strip_png(frames: Tensor, side: int = 192) -> bytes:
    """Frames (F, C, H, W) or mid-slices of (F, C, D, H, W) side by side, without gaps, enlarged."""
    scale = max(1, side // frames.shape[-1])
    return image_png(mosaic(frames, len(frames), scale=scale, gap=0))


def heat_png(heat: Tensor, side: int = 192) -> bytes:
    """A map (H, W) in false colours, scaled to its own largest value."""
    from matplotlib import colormaps

    unit = (heat / heat.max().clamp(min=1e-12)).numpy()
    rgb = torch.from_numpy(colormaps["inferno"](unit)[..., :3]).permute(2, 0, 1).float() * 2 - 1
    return image_png(mosaic(rgb[None], 1, scale=max(1, side // heat.shape[-1]), gap=0))


def traversal_sliders(found: Traversal, use: LatentUse) -> list[Slider]:
    """One slider per latent."""
    volume = found.frames.ndim == 6
    labels = [step_text(s) for s in found.steps]
    sliders = []
    for k, j in enumerate(found.dims):
        heat = middle(found.heat[k]) if volume else found.heat[k]
        detail = (
            f"{float(use.kl[j]):.2f} nats, sd {float(use.std[j]):.2f}; change per step {float(found.change[k]):.3f}, "
            f"largest over mean {float(found.jump[k]):.1f}"
        )
        wide = found.frames.shape[-1] / found.frames.shape[-2]
        strip = strip_png(found.frames[k])
        sliders.append(Slider(f"Latent {j}", detail, strip, labels, len(labels) // 2, heat_png(heat), wide))
    return sliders


def swap_png(found: Swap) -> bytes:
    """Reconstruction, mixture, the other reconstruction, and what changed with the receptive field's outline."""
    volume = found.images.ndim == 5
    images = middle(found.images) if volume else found.images  # (3, C, H, W)
    change, field = (middle(v) if volume else v for v in (found.change, found.field))  # (H, W)
    figure = Figure(figsize=(8.8, 2.6), layout="constrained")
    axes = figure.subplots(1, 4)
    for ax, image, title in zip(
        axes, images, ("reconstruction", "with swapped codes", "the other reconstruction")
    ):
        grey = (image.clamp(-1, 1) + 1) / 2  # (C, H, W)
        ax.imshow(grey.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=9)
    axes[3].imshow(change.numpy(), cmap="inferno", vmin=0)
    if bool(field.any()) and not bool(field.all()):
        axes[3].contour(field.numpy(), levels=[0.5], colors="#56B4E9", linewidths=1.0)
    axes[3].set_title("change, receptive field", fontsize=9)
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
    return figure_png(figure)


def usage_png(found: CodeUse) -> bytes:
    """How often each code occurs, most frequent first, and how many codes are in use at each position."""
    figure = Figure(figsize=(7.6, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    share = found.counts.sort(descending=True).values / found.counts.sum().clamp(min=1)
    left.plot(range(1, len(share) + 1), share.numpy(), color=COLOURS[0], lw=1.6)
    left.set_xlabel("code, most frequent first")
    left.set_ylabel("share of positions")
    left.set_title(f"perplexity {found.perplexity:.0f} of {len(share)}", fontsize=9)
    left.spines[["top", "right"]].set_visible(False)
    grid = middle(found.by_position) if found.by_position.ndim == 3 else found.by_position  # (H, W)
    shown = right.imshow(grid.numpy(), cmap="viridis", vmin=1)
    right.set_title("codes in use by position", fontsize=9)
    right.set_xticks([])
    right.set_yticks([])
    figure.colorbar(shown, ax=right)
    return figure_png(figure)


def swap_sliders(found: Swap, frames: Tensor, regions: list[Region]) -> list[Slider]:
    """Before, after and the other image; then the swapped block growing from nothing to the whole map."""
    volume = found.images.ndim == 5
    heat = middle(found.change) if volume else found.change
    wide = found.images.shape[-1] / found.images.shape[-2]
    words = region_text(found.region)
    share = (
        "nothing changed" if found.inside != found.inside else f"{found.inside:.0%} of changed pixels inside"
    )
    detail = f"codes {words}; {share} their receptive field"
    names = ["the image", "codes swapped", "the other image"]
    growth = [region_text(r) for r in regions]
    return [
        Slider("The swap", detail, strip_png(found.images), names, 1, heat_png(heat), wide),
        Slider("A growing block", "from nothing to all codes", strip_png(frames), growth, 1, wide=wide),
    ]


def region_text(region: Region) -> str:
    """'4:12, 0:16'; 'none' for an empty region."""
    return ", ".join(f"{a}:{b}" for a, b in region) if all(a < b for a, b in region) else "none"


def write_page(path: Path, title: str, lead: str, sliders: list[Slider]) -> Path:
    """One HTML file with a slider per strip; works offline, nothing is loaded from elsewhere."""
    page = template("explorer.html.j2").render(title=title, lead=lead, sliders=sliders)
    atomic_write(path, page.encode())
    return path
