"""Patches around voxels, in 2D and 3D: where they may lie, how they are cut out, how a coarse map becomes a full one.

A patch has an odd number of pixels per side and is named by its centre; images are padded by half a patch, so
that every pixel is the centre of one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def foreground(x: Tensor, background: float) -> Tensor:
    """(B, *S) bool: pixels of x (B, C, *S) with a channel above `background`."""
    return (x > background).any(1)


def usable_centres(mask: Tensor, patch: int) -> Tensor:
    """(B, *S) bool: pixels whose patch holds any pixel of mask (B, *S); the others see background alone."""
    h = mask.float()
    for axis in range(1, mask.ndim):  # a box is the maximum along one axis after the other
        rows = h.movedim(axis, -1)
        flat = rows.reshape(-1, 1, rows.shape[-1])
        h = F.max_pool1d(flat, patch, 1, patch // 2).view(rows.shape).movedim(-1, axis)
    return h > 0


def draw_centres(usable: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(n, d) int64 centres, drawn with replacement, uniformly, from usable (*S) bool; from all pixels if none is."""
    places = usable.nonzero()
    if len(places) == 0:
        places = torch.ones_like(usable).nonzero()
    pick = torch.randint(len(places), (n,), generator=generator, device=generator.device)
    return places[pick.to(places.device)]


def pad(x: Tensor, patch: int, value: float) -> Tensor:
    """x (..., *S) of d trailing axes with patch // 2 pixels of `value` on every side; x is (B, C, *S)."""
    return F.pad(x, [patch // 2] * 2 * (x.ndim - 2), value=value)


def cut(padded: Tensor, centres: Tensor, patch: int) -> Tensor:
    """Patches (n, C, p, ..., p) around centres (n, d), in pixels of the image before it was padded to (C, *S)."""
    windows = padded
    for axis in range(1, padded.ndim):
        windows = windows.unfold(axis, patch, 1)  # a view (C, *S, p, ..., p)
    where: tuple[Any, ...] = (slice(None), *centres.unbind(1))
    return windows[where].movedim(0, 1)


def grid(size: tuple[int, ...], stride: int) -> list[Tensor]:
    """Positions per axis, `stride` apart; first and last pixel are always among them, so the whole image is covered."""
    axes = []
    for n in size:
        at = torch.arange(0, n, stride)
        axes.append(at if int(at[-1]) == n - 1 else torch.cat([at, torch.tensor([n - 1])]))
    return axes


def fill_in(values: Tensor, axes: list[Tensor], size: tuple[int, ...]) -> Tensor:
    """Linear (bilinear, trilinear) interpolation of values on the grid `axes` to every pixel, (*size)."""
    for at, n in zip(axes, size):
        # contracting the first axis puts the new one last: after d turns the order is as before
        values = torch.tensordot(values, _weights(at, n).to(values), dims=([0], [1]))
    return values


def _weights(at: Tensor, n: int) -> Tensor:
    """(n, len(at)) float64: what each pixel takes from its two neighbours on the grid; rows sum to 1."""
    matrix = torch.zeros(n, len(at), dtype=torch.float64)
    if len(at) == 1:
        return matrix + 1
    pixel = torch.arange(n)
    right = torch.searchsorted(at, pixel).clamp(min=1)
    left = right - 1
    share = (pixel - at[left]).double() / (at[right] - at[left]).double()
    matrix[pixel, left] = 1 - share
    matrix[pixel, right] += share
    return matrix
