"""Signed distances and how much of a pixel a shape covers: what all phantoms are drawn with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

BUDGET = 1 << 15  # points per piece: tensors of 128 KiB stay in cache and off the system allocator


def cover(distance: Tensor, edge: float) -> Tensor:
    """Signed distance -> share covered, 1 inside, falling linearly over an edge of that width."""
    return F.hardsigmoid(distance * (-6 / edge))  # hardsigmoid(x) = clamp(x / 6 + 1 / 2, 0, 1)


def ellipse(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Signed distance to the ellipse (x/a)^2 + (y/b)^2 = 1, exact where the two semi-axes are equal."""
    radius = (x / a).square_().add_((y / b).square_()).sqrt_()
    return radius.sub_(1.0).mul_((a + b) * 0.5)
