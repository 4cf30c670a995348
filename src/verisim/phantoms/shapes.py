"""Signed distances and how much of a pixel a shape covers: what all phantoms are drawn with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BUDGET = (
    1 << 16
)  # points per piece: tensors of 256 KiB, large enough for torch and small enough for the cache


def keep_freed_memory() -> None:
    """Let the C library keep what pieces free, instead of fetching the same pages again for each of them.

    Freeing one large block raises the thresholds (mallopt's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD) of glibc
    for the rest of the process; elsewhere this does nothing. Its pages are never touched.
    """
    torch.empty(7 << 20)  # 28 MiB; glibc adapts up to 32 MiB


def cover(distance: Tensor, edge: float) -> Tensor:
    """Signed distance -> share covered, 1 inside, falling linearly over an edge of that width."""
    return F.hardsigmoid(distance * (-6 / edge))  # hardsigmoid(x) = clamp(x / 6 + 1 / 2, 0, 1)


def ellipse(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Signed distance to the ellipse (x/a)^2 + (y/b)^2 = 1, exact where the two semi-axes are equal."""
    radius = (x / a).square_().add_((y / b).square_()).sqrt_()
    return radius.sub_(1.0).mul_((a + b) * 0.5)
