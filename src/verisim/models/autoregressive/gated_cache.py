"""Cached sampling of the gated stack: every feature is computed once, as soon as it can be known.

The vertical stack depends on the rows above only: it runs one row at a time, and each layer keeps the
rows that its dilated kernel still reaches. The horizontal stack runs one pixel at a time as a few small
matrix products, and each layer keeps its normalised features of the current row. A whole image costs
about one forward pass, against one forward pass per pixel without the cache. Same numbers as
GatedStack.forward in eval mode, up to rounding.
"""

from __future__ import annotations

import math
from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.models.autoregressive.gated_stack import (
    FIRST_ROWS,
    FIRST_SIDE,
    GatedLayer,
    GatedStack,
    gate,
)


class VerticalMemory:
    """One layer of the vertical stack, row by row; keeps the normalised rows r - d ... r."""

    def __init__(self, layer: GatedLayer, label: Tensor | None, n: int, width: int) -> None:
        self.layer, d = layer, layer.dilation
        self.label_bias = layer.label_bias(label)  # for the gates of v and of h
        blank = layer.conv_v.weight.new_zeros(n, layer.channels, 1, width)
        self.rows = deque([blank] * (d + 1), maxlen=d + 1)

    def step(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v (B, C, 1, W) of this row -> next layer's v, and what the horizontal gates get, (W, B, 2C)."""
        layer, d = self.layer, self.layer.dilation
        self.rows.append(layer.norm_v(v))
        taps = F.pad(torch.cat([self.rows[0], self.rows[-1]], 2), (d, d))  # rows r - d and r
        conv = layer.conv_v
        gv = gate(
            F.conv2d(taps, conv.weight, conv.bias, dilation=(1, d)) + self.label_bias[0]
        )  # (B, C, 1, W)
        link = layer.link(gv) + self.label_bias[1]  # (B, 2C, 1, W)
        assert layer.conv_h.bias is not None
        to_gates = link[:, :, 0].permute(2, 0, 1) + layer.conv_h.bias  # (W, B, 2C)
        return (v if layer.out_v is None else v + layer.out_v(gv)), to_gates.contiguous()


class HorizontalMemory:
    """One layer of the horizontal stack, pixel by pixel; keeps the normalised features of this row."""

    def __init__(self, layer: GatedLayer, n: int, width: int) -> None:
        c, self.dilation, self.norm = layer.channels, layer.dilation, layer.norm_h
        weight = layer.conv_h.weight[:, :, 0]  # (2C, C, 2), taps c - d and c
        self.weight = weight.permute(2, 1, 0).flatten(0, 1).contiguous()  # (2 * C, 2C)
        self.residual = layer.out_h.weight[:c, :, 0, 0].t().contiguous()  # (C, C)
        self.row = weight.new_zeros(width + layer.dilation, n, c)  # d columns of padding, then the row

    def step(self, h: Tensor, to_gates: Tensor, col: int) -> tuple[Tensor, Tensor]:
        """h (B, C), to_gates (B, 2C) -> next layer's h and the gate's output, (B, C) each."""
        norm = self.norm
        now = F.layer_norm(h, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        self.row[col + self.dilation] = now
        taps = torch.cat([self.row[col], now], 1)  # columns c - d and c: (B, 2 * C)
        g = gate(torch.addmm(to_gates, taps, self.weight))
        return torch.addmm(h, g, self.residual), g


class GatedStackStepper:
    """Walks a GatedStack over n images of `size` in raster order; see raster.Stepper."""

    def __init__(
        self,
        net: GatedStack,  # in eval mode: dropout is not applied here
        n: int,  # images side by side
        size: tuple[int, int],  # (H, W)
        label: Tensor | None = None,  # (n,) classes
    ) -> None:
        self.net, (height, width) = net, size
        layers = net.gated_layers()
        self.vertical = [VerticalMemory(layer, label, n, width) for layer in layers]
        self.horizontal = [HorizontalMemory(layer, n, width) for layer in layers]
        weight = net.first_v.weight
        # the image so far, with the padding of the first layer around it: (B, I, 3 + H, 3 + W + 3)
        padded = (n, weight.shape[1], FIRST_ROWS + height, FIRST_SIDE + width + FIRST_SIDE)
        self.image = weight.new_zeros(padded)
        place_v, place_h = net.places(height, width)
        self.place_v = place_v  # (1, C, H, W)
        assert net.first_h.bias is not None
        self.place_h = place_h[0].permute(1, 2, 0).contiguous()  # (H, W, C)
        self.first_bias = net.first_h.bias  # (C + P,)
        self.first_h = net.first_h.weight.flatten(1).t().contiguous()  # (I * 3, C + P)
        channels = net.channels
        skips = torch.cat([layer.out_h.weight[channels:, :, 0, 0] for layer in layers], 1)
        self.skips = (skips / math.sqrt(len(layers))).t().contiguous()  # (L * C, 2C)
        self.to_gates: list[Tensor] = []  # of this row: what the vertical stack gives each layer
        self.direct = weight  # of this row: its linear prediction of the output

    def begin_row(self, row: int) -> None:
        """The vertical stack of this row, all columns at once."""
        above = self.image[:, :, row : row + FIRST_ROWS]  # image rows r - 3 ... r - 1
        first = F.conv2d(above, self.net.first_v.weight, self.net.first_v.bias)  # (B, C + P, 1, W)
        v = first[:, : self.net.channels] + self.place_v[:, :, row : row + 1]
        self.direct = first[:, self.net.channels :, 0].permute(2, 0, 1).contiguous()  # (W, B, P)
        self.to_gates = []
        for layer in self.vertical:
            v, to_gates = layer.step(v)
            self.to_gates.append(to_gates)  # (W, B, 2C)

    def params(self, row: int, col: int) -> Tensor:
        """Head parameters (B, P) of the pixel."""
        left = self.image[:, :, row + FIRST_ROWS, col : col + FIRST_SIDE].flatten(1)  # (B, I * 3)
        first = torch.addmm(self.first_bias, left, self.first_h)  # (B, C + P)
        h = first[:, : self.net.channels] + self.place_h[row, col]
        direct = first[:, self.net.channels :] + self.direct[col]
        gates = []
        for layer, to_gates in zip(self.horizontal, self.to_gates):
            h, g = layer.step(h, to_gates[col], col)
            gates.append(g)
        skip = torch.relu_(torch.cat(gates, 1) @ self.skips)  # (B, 2C)
        hidden, final = self.net.hidden, self.net.final
        skip = torch.relu_(F.linear(skip, hidden.weight[:, :, 0, 0], hidden.bias))
        return direct + F.linear(skip, final.weight[:, :, 0, 0], final.bias)

    def write(self, row: int, col: int, value: Tensor) -> None:
        """value (B,) for a single input channel, or (B, I)."""
        self.image[:, :, row + FIRST_ROWS, col + FIRST_SIDE] = value.view(len(value), -1)
