"""Volumes and areas of the overlap of two balls and of two discs, (N,) each, float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ball_overlap(r: Tensor, d: Tensor) -> Tensor:
    """Volume common to the unit ball and a ball of radius r whose centre is d away, 0 < |1 - r| < d < 1 + r.

    pi (1 + r - d)^2 (d^2 + 2 d (1 + r) - 3 (1 - r)^2) / (12 d)
    """
    lens = math.pi * (1 + r - d).square() * (d.square() + 2 * d * (1 + r) - 3 * (1 - r).square()) / (12 * d)
    whole = 4 / 3 * math.pi * torch.minimum(r, torch.ones_like(r)) ** 3
    return torch.where(d <= (1 - r).abs(), whole, torch.where(d >= 1 + r, 0.0, lens))


def disc_overlap(square_a: Tensor, square_b: Tensor, d: Tensor) -> Tensor:
    """Area common to two discs of squared radii a^2 and b^2 (<= 0: none) whose centres are d apart."""
    a, b = square_a.clamp(min=0.0).sqrt(), square_b.clamp(min=0.0).sqrt()
    safe = d.clamp(min=1e-9)
    alpha = (
        ((safe.square() + a.square() - b.square()) / (2 * safe * a).clamp(min=1e-12)).clamp(-1.0, 1.0).acos()
    )
    beta = (
        ((safe.square() + b.square() - a.square()) / (2 * safe * b).clamp(min=1e-12)).clamp(-1.0, 1.0).acos()
    )
    lens = a.square() * (alpha - (2 * alpha).sin() / 2) + b.square() * (beta - (2 * beta).sin() / 2)
    whole = math.pi * torch.minimum(a, b).square()
    return torch.where(d <= (a - b).abs(), whole, torch.where(d >= a + b, 0.0, lens))
