"""The U-Net of guided diffusion (Dhariwal 2021) without attention, with the skips of source 002 (section C.3).

It differs from `verisim.nets.unet` in what fixes its parameter count: resampling by convolutions between the
levels, an embedding that is added (no scale), one block more per level on the way up, as many groups in every
norm as the finest level has channels. A skip joins by

    concat     [h, skip]                    channels add up
    average    (h + skip) / 2               the variance of two independent unit signals becomes 1/2
    root       (h + skip) / sqrt(2)         ... 1
    sum        h + skip                     ... 2; diverges in training

All but concat need equal widths, so a block's output is as wide as the skip that comes next.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from verisim.errors import VerisimError, pick
from verisim.nets.blocks import CONV, convolution, zeroed
from verisim.nets.unet import check_size

Skip = Literal["concat", "average", "root", "sum"]
DIVISOR = {"average": 2.0, "root": math.sqrt(2.0), "sum": 1.0}  # f of (h + skip) / f
SOURCE = (29, 87, 116, 116, 116, 116, 116)  # widths of source 002: 29 times (1, 3, 4, 4, 4, 4, 4)


class GuidedUNet(nn.Module):
    """(B, C, *S) and step numbers (B,) -> (B, C', *S), 0 at the start. Sides: multiples of `stride`."""

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        in_channels: int,  # C
        out_channels: int = 1,  # C'
        channels: tuple[
            int, ...
        ] = SOURCE,  # width per level, multiples of the first; each level halves the size
        blocks: int = 2,  # residual blocks per level on the way down; one more on the way up
        skip: Skip = "average",
        attention: tuple[bool, ...] = (),  # self-attention per level; () = nowhere, as the source has it
        groups: int = 0,  # of every norm; 0 = channels[0], the source's: one channel per group at the finest level
        dropout: float = 0.0,  # probability inside the residual blocks
        checkpointing: bool = False,  # recompute blocks in the backward pass: less memory, a third slower
    ) -> None:
        super().__init__()
        _check(spatial_dims, channels, blocks, skip, attention, groups)
        levels, groups, width = len(channels), groups or channels[0], 4 * channels[0]
        attends = attention or (False,) * levels
        self.divisor = DIVISOR.get(skip)  # None = concat
        self.stride, self.checkpointing = 2 ** (levels - 1), checkpointing
        self.embedding = StepEmbedding(channels[0], width)
        self.conv_in = convolution(spatial_dims, in_channels, channels[0])

        def block(a: int, b: int, level: int) -> ResidualBlock:
            return ResidualBlock(spatial_dims, a, b, width, groups, dropout, attends[level])

        down: list[nn.Module] = []
        now, kept = channels[0], [channels[0]]  # kept: widths of the skips, in the order they are made
        for i in range(levels):
            for _ in range(blocks):
                down.append(block(now, channels[i], i))
                now = channels[i]
                kept.append(now)
            if i < levels - 1:
                down.append(Down(spatial_dims, now))
                kept.append(now)
        middle = [block(now, now, levels - 1) for _ in range(2)]
        up: list[nn.Module] = []
        for i in reversed(range(levels)):
            for k in range(blocks + 1):
                joined = now + kept.pop() if self.divisor is None else kept.pop()
                now = channels[i] if self.divisor is None else (kept[-1] if kept else channels[0])
                up.append(block(joined, now, i))
                if i > 0 and k == blocks:
                    up.append(Up(spatial_dims, now))
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.norm_out = nn.GroupNorm(groups, channels[0])
        self.conv_out = zeroed(convolution(spatial_dims, channels[0], out_channels))

    def forward(self, x: Tensor, step: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, C, *S), step (B,) 0...999 -> (B, C', *S). `label` must be None: this network knows no classes."""
        check_size(tuple(x.shape[2:]), self.stride, "guided U-Net")
        if label is not None:
            raise VerisimError("The guided U-Net knows no classes; leave the label out.")
        return self.conv_out(F.silu(norm(self.norm_out, self.features(x, step))))

    def features(self, x: Tensor, step: Tensor) -> Tensor:
        """The last feature map (B, channels[0], *S), before the head."""
        emb = self.embedding(step)  # (B, E)
        h = self.conv_in(x)
        skips = [h]
        for part in self.down:
            h = self._run(part, h, emb)
            skips.append(h)
        for part in self.middle:
            h = self._run(part, h, emb)
        for part in self.up:
            h = self._run(part, h if isinstance(part, Up) else self.join(h, skips.pop()), emb)
        return h

    def join(self, h: Tensor, skip: Tensor) -> Tensor:
        """h and skip (B, C, *S) as one input of a block."""
        return torch.cat([h, skip], dim=1) if self.divisor is None else (h + skip) / self.divisor

    def _run(self, part: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(part, h, emb, use_reentrant=False)
        return part(h, emb)


class ResidualBlock(nn.Module):
    """h + conv(silu(norm(conv(silu(norm(h))) + linear(silu(emb))))); its second convolution starts at 0."""

    def __init__(
        self,
        dims: int,  # 2 or 3
        in_channels: int,
        out_channels: int,
        embedding: int,  # width of the step embedding
        groups: int,  # of both norms
        dropout: float,  # probability before the second convolution
        attend: bool,  # self-attention behind the block
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = convolution(dims, in_channels, out_channels)
        self.shift = nn.Linear(embedding, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(convolution(dims, out_channels, out_channels))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else convolution(dims, in_channels, out_channels, kernel=1)
        self.attention = Attention(out_channels, groups) if attend else None

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """h (B, C_in, *S), emb (B, E) -> (B, C_out, *S)."""
        y = self.conv1(F.silu(norm(self.norm1, h)))
        t = self.shift(F.silu(emb))  # (B, C_out)
        y = y + t.view(*t.shape, *[1] * (y.ndim - 2))
        y = self.shortcut(h) + self.conv2(self.dropout(F.silu(norm(self.norm2, y))))
        return y if self.attention is None else self.attention(y)


class Attention(nn.Module):
    """h + one head of attention over all positions; starts as the identity. Quadratic in the voxels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, h: Tensor) -> Tensor:
        tokens = norm(self.norm, h).flatten(2).transpose(1, 2)  # (B, N, C), N = prod(S)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        y = self.out(F.scaled_dot_product_attention(q, k, v))  # (B, N, C)
        return h + y.transpose(1, 2).reshape(h.shape)


class Down(nn.Module):
    """Half the size by a convolution of stride 2; width kept."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = CONV[dims](channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.conv(h)


class Up(nn.Module):
    """Twice the size: nearest neighbour, then a convolution; width kept."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = convolution(dims, channels, channels)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class StepEmbedding(nn.Module):
    """Step numbers (B,) -> (B, width): cosines and sines of frequencies 1 to 1e-4, two linear layers."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.hidden, self.out = nn.Linear(features, width), nn.Linear(width, width)

    def forward(self, step: Tensor) -> Tensor:
        half = self.features // 2
        k = torch.arange(half, device=step.device)
        angle = step.float()[:, None] * torch.exp(-math.log(1e4) * k / half)  # (B, half)
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        waves = F.pad(waves, (0, self.features % 2))  # an odd count ends in a 0
        return self.out(F.silu(self.hidden(waves.to(self.hidden.weight.dtype))))


def norm(module: nn.GroupNorm, h: Tensor) -> Tensor:
    """module(h) with float32 statistics, in the dtype of h."""
    return module(h.float()).to(h.dtype)  # autocast leaves group norm in float32


def _check(
    dims: int, channels: tuple[int, ...], blocks: int, skip: str, attention: tuple[bool, ...], groups: int
) -> None:
    """VerisimError for settings that describe no network."""
    pick({"concat": 0, **DIVISOR}, skip, "skip")
    if dims not in CONV:
        raise VerisimError(f"guided U-Net: spatial_dims={dims}; it must be 2 or 3.")
    if not channels or channels[0] < 2 or any(c < 1 or c % channels[0] for c in channels):
        raise VerisimError(
            f"guided U-Net: channels={tuple(channels)}; give one width per level, all of them multiples of the "
            f"first (2 or more), e.g. 8,16,16."
        )
    if groups and channels[0] % groups:
        raise VerisimError(
            f"guided U-Net: groups={groups} does not divide the first width {channels[0]}; 0 takes the width itself."
        )
    if blocks < 1:
        raise VerisimError(f"guided U-Net: blocks={blocks}; at least 1 per level is needed.")
    if attention and len(attention) != len(channels):
        raise VerisimError(
            f"guided U-Net: attention has {len(attention)} flags for {len(channels)} levels. Give one per level."
        )
