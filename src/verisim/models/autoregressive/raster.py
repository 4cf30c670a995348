"""Sampling pixel by pixel in raster order: one loop for every network, cached or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from verisim.models.autoregressive.heads import UNIFORMS


class Stepper(Protocol):
    """A network that is walked over the image in raster order, remembering what it needs."""

    def begin_row(self, row: int) -> None:
        """All rows above `row` are known; prepare for its pixels."""
        ...

    def params(self, row: int, col: int) -> Tensor:
        """Head parameters (B, P) of one pixel, given all pixels before it."""
        ...

    def write(self, row: int, col: int, value: Tensor) -> None:
        """Tell the value of that pixel, (B,) or (B, I), on the network's own input scale."""
        ...


class FullForward:
    """The stepper without any memory: the whole network runs once for every pixel."""

    def __init__(
        self,
        net: nn.Module,
        n: int,  # images side by side
        size: tuple[int, int],  # (H, W)
        label: Tensor | None,  # (n,) classes
        inputs: int = 1,  # I, channels of the network's input
    ) -> None:
        weight = next(net.parameters())
        self.net, self.label = net, label
        self.canvas = torch.zeros(n, inputs, *size, dtype=weight.dtype, device=weight.device)

    def begin_row(self, row: int) -> None:
        """Nothing to prepare."""

    def params(self, row: int, col: int) -> Tensor:
        return self.net(self.canvas, self.label)[:, :, row, col]

    def write(self, row: int, col: int, value: Tensor) -> None:
        self.canvas[:, :, row, col] = value.view(len(value), -1)


def uniforms(n: int, size: tuple[int, int], generator: torch.Generator, device: torch.device | str) -> Tensor:
    """(n, H, W, 2) uniform numbers in a fixed order, so that every stepper draws the same image."""
    return torch.rand(n, *size, UNIFORMS, generator=generator, device=generator.device).to(device)


def raster_scan(
    stepper: Stepper,
    draw: Callable[[Tensor, Tensor], Tensor],  # params (B, P), uniforms (B, 2) -> level (B,)
    to_input: Callable[[Tensor], Tensor],  # level (B,) -> the network's input scale, (B,) or (B, I)
    u: Tensor,  # (B, H, W, 2)
    rows: int | None = None,  # stop after so many rows; the rest stays 0
) -> Tensor:
    """Grey levels (B, H, W) int64: x_i ~ p(x_i | x_<i), i in raster order (source 004, section 3 A)."""
    n, height, width, _ = u.shape
    level = torch.zeros(n, height, width, dtype=torch.long, device=u.device)
    for row in range(height if rows is None else rows):
        stepper.begin_row(row)
        for col in range(width):
            drawn = draw(stepper.params(row, col), u[:, row, col])
            level[:, row, col] = drawn
            stepper.write(row, col, to_input(drawn))
    return level
