"""Gated PixelCNN network: a vertical stack sees all rows above, a horizontal stack the pixels to the left.

Two stacks because one stack of masked convolutions never sees a region above right of the pixel. Gates,
residual and skip connections after van den Oord et al., "Conditional image generation with PixelCNN
decoders", 2016, equations 2 to 4 and figure 2; shifted kernels instead of masks after PixelCNN++.
Normalisation is over the channels of one pixel, so no pixel and no image sees another by it.
"""

from __future__ import annotations

import math
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FREQUENCIES = 4  # sines and cosines per axis in the coordinate input
FIRST_ROWS = 3  # rows above that the first vertical layer sees
FIRST_SIDE = 3  # pixels left (both stacks) and right (vertical stack) that the first layer sees


def reach(dilations: tuple[int, ...]) -> int:
    """How many rows up, and pixels left and right, the stack sees: the first layer plus all dilations."""
    return FIRST_SIDE + sum(dilations)


def covering_dilations(layers: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """Dilations 1, 2, 4, ..., repeated: the shortest cycle whose reach covers the whole image, or the
    longest possible one where `layers` are too few."""
    cycles = [tuple(2**i for i in range(n)) for n in range(1, layers + 1)]
    found = [tuple(islice(cycle(c), layers)) for c in cycles]
    return next((d for d in found if reach(d) >= max(size) - 1), found[-1])


def coordinates(height: int, width: int, like: Tensor) -> Tensor:
    """Where a pixel is: (1, F, H, W) with row and column in [-1, 1] and their sines and cosines."""
    axes = torch.meshgrid(
        *(torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in (height, width)),
        indexing="ij",
    )
    maps = [*axes]
    for k in range(FREQUENCIES):
        for t in axes:
            maps += [torch.sin(math.pi * 2**k * t / 2), torch.cos(math.pi * 2**k * t / 2)]
    return torch.stack(maps)[None]


def gate(a: Tensor, dim: int = 1) -> Tensor:
    """tanh(first half) * sigmoid(second half) of the channels (equation 2)."""
    f, g = a.chunk(2, dim)
    return torch.tanh(f) * torch.sigmoid(g)


def pad(x: Tensor, left: int, right: int, top: int) -> Tensor:
    """Zeros around x (B, C, H, W), laid out so that a dilated convolution's gradient can be trusted.

    In bfloat16 and channels_last, oneDNN (torch 2.13, CPU) returns garbage as the weight gradient of a
    dilated convolution whose width 16 does not divide (seen: 24 and 40); the plain layout is right.
    """
    x = F.pad(x, (left, right, top, 0))
    return x.contiguous() if x.shape[1] % 16 else x


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel by itself: (B, C, H, W) -> same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GatedLayer(nn.Module):
    """One layer of both stacks; vertical v and horizontal h, each (B, C, H, W)."""

    def __init__(
        self,
        channels: int,  # C
        skip: int,  # channels of the skip connection
        dilation: int,  # d, pixels between taps
        num_classes: int,  # 0 = unconditional
        dropout: float,  # probability
        last: bool,  # nothing reads the vertical stack after it
    ) -> None:
        super().__init__()
        c, self.channels, self.dilation, self.dropout = channels, channels, dilation, dropout
        self.norm_v, self.norm_h = ChannelNorm(c), ChannelNorm(c)
        self.conv_v = nn.Conv2d(c, 2 * c, (2, 3), dilation=dilation)  # rows r - d, r; columns c - d, c, c + d
        self.conv_h = nn.Conv2d(c, 2 * c, (1, 2), dilation=dilation)  # columns c - d and c
        self.link = nn.Conv2d(c, 2 * c, 1, bias=False)  # vertical -> horizontal
        self.out_v = None if last else nn.Conv2d(c, c, 1, bias=False)
        self.out_h = nn.Conv2d(c, c + skip, 1, bias=False)  # residual and skip at once
        self.label = nn.Embedding(num_classes, 4 * c) if num_classes else None  # gates of v and of h
        if self.out_v is not None:
            nn.init.zeros_(self.out_v.weight)
        nn.init.zeros_(self.out_h.weight[:c])
        if self.label is not None:
            nn.init.zeros_(self.label.weight)

    def label_bias(self, label: Tensor | None) -> tuple[Tensor, Tensor] | tuple[float, float]:
        """What class `label` (B,) adds to the gates of v and h: (B, 2C, 1, 1) each (equation 4)."""
        if self.label is None or label is None:
            return 0.0, 0.0
        v, h = self.label(label)[:, :, None, None].chunk(2, 1)
        return v, h

    def forward(self, v: Tensor, h: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(v, h) -> (v, h, skip)."""
        d = self.dilation
        label_v, label_h = self.label_bias(label)
        gv = gate(self.conv_v(pad(self.norm_v(v), d, d, d)) + label_v)  # (B, C, H, W)
        gv = F.dropout2d(gv, self.dropout, self.training)
        a = self.conv_h(pad(self.norm_h(h), d, 0, 0)) + self.link(gv) + label_h  # (B, 2C, H, W)
        gh = F.dropout2d(gate(a), self.dropout, self.training)
        residual, skip = self.out_h(gh).split([self.channels, self.out_h.out_channels - self.channels], 1)
        return (v if self.out_v is None else v + self.out_v(gv)), h + residual, skip


class GatedStack(nn.Module):
    """x (B, I, H, W) -> (B, outputs, H, W); the output at a pixel depends on earlier pixels only."""

    def __init__(
        self,
        inputs: int,  # I, channels of the input
        outputs: int,  # numbers per pixel for the head
        channels: int,  # C, width of both stacks
        dilations: tuple[int, ...],  # one per layer
        num_classes: int = 0,  # 0 = unconditional
        dropout: float = 0.0,  # probability, of whole channels of every gate's output
    ) -> None:
        super().__init__()
        self.channels, self.skip, self.num_classes = channels, 2 * channels, num_classes
        side = 2 * FIRST_SIDE + 1
        # the first layer also predicts the output directly: a linear autoregression, zero at the start
        self.first_v = nn.Conv2d(inputs, channels + outputs, (FIRST_ROWS, side))  # rows above, both sides
        self.first_h = nn.Conv2d(inputs, channels + outputs, (1, FIRST_SIDE))  # strictly left
        self.place = nn.Conv2d(2 + 4 * FREQUENCIES, 2 * channels, 1, bias=False)  # for v and for h
        self.layers = nn.ModuleList(
            GatedLayer(channels, self.skip, d, num_classes, dropout, last=i + 1 == len(dilations))
            for i, d in enumerate(dilations)
        )
        self.hidden = nn.Conv2d(self.skip, self.skip, 1)
        self.final = nn.Conv2d(self.skip, outputs, 1)
        for first in (self.first_v, self.first_h):
            nn.init.zeros_(first.weight[channels:])
            assert first.bias is not None
            nn.init.zeros_(first.bias)

    def gated_layers(self) -> list[GatedLayer]:
        return [layer for layer in self.layers if isinstance(layer, GatedLayer)]

    def places(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """What the position adds to v and h at the start: (1, C, H, W) each."""
        v, h = self.place(coordinates(height, width, self.place.weight)).chunk(2, 1)
        return v, h

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, I, H, W), label (B,) int64 or None -> head parameters (B, outputs, H, W)."""
        height, width = x.shape[-2:]
        s = FIRST_SIDE
        place_v, place_h = self.places(height, width)
        above = self.first_v(pad(x, s, s, FIRST_ROWS))[:, :, :-1]  # rows < r
        left = self.first_h(pad(x, s, 0, 0))[..., :-1]  # columns < c of row r
        v = (above[:, : self.channels] + place_v).contiguous(memory_format=torch.channels_last)
        h = (left[:, : self.channels] + place_h).contiguous(memory_format=torch.channels_last)
        direct = above[:, self.channels :] + left[:, self.channels :]  # (B, outputs, H, W)
        skips: Tensor | float = 0.0
        for layer in self.gated_layers():
            v, h, skip = layer(v, h, label)
            skips = skips + skip  # (B, 2C, H, W)
        assert isinstance(skips, Tensor)
        skips = skips / math.sqrt(len(self.layers))
        return direct + self.final(F.relu(self.hidden(F.relu(skips))))
