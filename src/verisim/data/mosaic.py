"""Many images as one picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def mosaic(pixels: Tensor, columns: int | None = None, scale: int = 1, gap: int = 1) -> Image.Image:
    """Grid of images (N, C, H, W) or mid-slices of volumes (N, C, D, H, W), in [-1, 1].

    One channel is grey, three are colour; the channels of others stand side by side.
    """
    if pixels.ndim == 5:
        pixels = pixels[:, :, pixels.shape[2] // 2]
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.movedim(1, 2).flatten(2)[:, None]  # (N, C, H, W) -> (N, 1, H, C * W)
    n, _, h, w = pixels.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 40, np.uint8)
    grey = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(n, 3, h, w)
    for i, tile in enumerate(grey.permute(0, 2, 3, 1).cpu().numpy()):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[y : y + h, x : x + w] = tile
    image = Image.fromarray(sheet)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def save_mosaic(path: Path, pixels: Tensor, columns: int | None = None, scale: int | None = None) -> None:
    """Write mosaic() as PNG, enlarged so that small images can be seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mosaic(pixels, columns, scale or max(1, 128 // pixels.shape[-1])).save(path)
