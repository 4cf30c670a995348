"""Measures a frontal chest X-ray from its pixels alone: heart side, cardiothoracic ratio, lungs, sharpness.

Made for many images at once: real, drawn or generated. Each image is brought to a grid of 64 x 64, its
midline is found as the axis of mirror symmetry of the upper chest, and each row is walked outwards from
there: central shadow, lung, chest wall. Two linear readouts, fitted once to phantoms of known anatomy
(`readout.py`), turn the overall picture into a cardiothoracic ratio and steady the heart side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.phantoms import readout
from verisim.phantoms.readout import GRID, halves, midline, smooth, to_grid

UPPER = slice(20, 34)  # rows of the middle of the lungs, above the heart
WALK = 46  # points walked on each side, from the midline to 1.15 times the inner half width of the chest
OUT = (torch.arange(WALK) + 0.5) / WALK * 1.15  # their distances, in half widths of the chest
ROWS = 12  # rows above the diaphragm in which the heart is looked for
CHUNK = 512  # images measured at a time


def measure(images: Images) -> dict[str, Tensor]:
    """Numbers per image, each (N,) float64, from pixels (N, 1, H, W).

    laterality: signed score in [-1, 1]; > 0 = the heart lies at the image right, as on every chest X-ray
        that is shown the right way round, < 0 = mirrored. Mirroring an image changes its sign exactly.
    cardiothoracic_ratio: widest heart / inner width of the chest, in [0, 1]; about 0.52, the mean, for
        pictures that show no chest (their symmetry is low).
    lung_darkness: how much darker the lungs are than the central shadow, in units of the image's range.
    symmetry: correlation of the upper chest with its own mirror image, in [-1, 1].
    sharpness: energy of the finest detail / total energy, >= 0; blurring lowers it, noise raises it.
    midline: column of the axis of symmetry, in image coordinates [-1, 1].
    Raises VerisimError unless the images are 2D with one channel and at least 16 x 16 pixels.
    """
    spec = images.spec
    if spec.spatial_dims != 2 or spec.channels != 1 or min(spec.size) < 16:
        raise VerisimError(
            f"phantoms.measure: images of shape {spec.shape} (channels, *size); chest X-rays of one channel "
            f"and at least 16 x 16 pixels can be measured. Convert to grey values or resize first."
        )
    parts = [_measure(x) for x in images.to_range(0.0, 1.0).pixels.split(CHUNK)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _measure(x: Tensor) -> dict[str, Tensor]:
    """x (B, 1, H, W) in [0, 1]."""
    grid = to_grid(x.double())  # (B, 64, 64)
    fine = smooth(grid, 0.7)
    middle, symmetry = midline(smooth(grid, 1.0))
    walked, darkness = _walk(fine, middle)
    fit = readout.fitted()
    template = fit.side(readout.halves_features(grid, middle)).clamp(-1.0, 1.0)
    return {
        "laterality": (walked + 0.2 * template) / 1.2,
        "cardiothoracic_ratio": fit.ratio(readout.picture_features(grid)).clamp(0.0, 1.0),
        "lung_darkness": darkness,
        "symmetry": symmetry,
        "sharpness": sharpness(x),
        "midline": (middle - (GRID - 1) / 2) * (2 / GRID),
    }


def sharpness(x: Tensor) -> Tensor:
    """(B,) energy of x - (binomial 3 x 3 blur of x), over the variance of x; x (B, 1, H, W)."""
    k = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
    blur = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), torch.outer(k, k)[None, None])
    variance = x.double().flatten(1).var(1, unbiased=False)
    return (x - blur).double().flatten(1).square().mean(1) / variance.clamp(min=1e-6)


def _walk(y: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Laterality in [-1, 1] and lung darkness, both (B,), from y (B, 64, 64) and its midline (B,).

    In the rows just above the diaphragm the central shadow reaches further to the heart's side.
    """
    both = halves(y, middle, 1.15 * _half_width(y, middle), WALK)  # (B, 2, 64, WALK): right, left
    central = halves(y, middle, torch.full_like(middle, 2.5), 5).mean((1, 3))  # (B, 64) along the midline
    lung = both[..., (OUT > 0.2) & (OUT < 0.95)].amin(3)  # (B, 2, 64) darkest point of each row
    centre = central[:, UPPER].mean(1)
    darkness = centre[:, None] - lung[:, :, UPPER].mean(2)  # (B, 2)
    centre_row = torch.maximum(central, centre[:, None])[:, None]
    bright = both > (lung + 0.5 * (centre_row - lung).clamp(min=0.02))[..., None]
    extent = bright.double().cumprod(3).sum(3) * (1.15 / WALK)  # (B, 2, 64) reach of the central shadow
    beyond = (extent[..., None] + 0.05 < OUT) & (OUT < 0.8)  # where only lung should be
    aerated = (~bright & beyond).double().sum(3) / beyond.double().sum(3).clamp(min=1)
    clear = (
        (aerated >= 0.8) & (centre_row - lung > 0.4 * darkness.clamp(min=0.02)[..., None]) & (extent < 0.85)
    )
    last = _last_clear_row(clear)
    row = torch.arange(GRID)
    used = ((row <= last[:, None]) & (row > last[:, None] - ROWS)).double()[:, None]  # (B, 1, 64)
    reach = (extent * used).sum(2) / ROWS  # (B, 2)
    laterality = (reach[:, 1] - reach[:, 0]) / (reach.sum(1) + 1e-6)
    return laterality, darkness.mean(1)


def _last_clear_row(clear: Tensor, first: int = 30, end: int = 56) -> Tensor:
    """(B,) last row above the diaphragm, where both sides still show lung; single bad rows are skipped."""
    ok = clear[:, :, first:end].double()
    after = torch.cat([ok[:, :, 1:], torch.zeros_like(ok[:, :, :1])], 2)
    return (first - 2 + torch.maximum(ok, after).cumprod(2).sum(2)).amin(1)


def _half_width(y: Tensor, middle: Tensor) -> Tensor:
    """(B,) inner half width of the chest in pixels of the grid, the mean of both sides."""
    steps = 62  # half a pixel each
    profile = halves(y, middle, torch.full_like(middle, steps / 2), steps)[:, :, 20:40]  # (B, 2, 20, steps)
    index = torch.arange(steps)
    dark, at = profile[..., 8:48].min(3)  # the lung
    outside = index > (at + 8)[..., None]
    wall = torch.where(outside, profile, -1.0).amax(3)
    edge = outside & (profile > (0.5 * (dark + wall))[..., None])
    half = torch.where(edge.any(3), edge.double().argmax(3), at + 12) / 2.0
    return half.sort(2).values[:, :, 15].mean(1).double()  # upper quartile of the rows: the widest part
