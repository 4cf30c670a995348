"""A 2D U-Net over a set of slices that look at each other: the network of cDPM. Peng 2023; spec 003, 16-G.

Slices (B, N, C, H, W) pass the U-Net as B N images; where it attends, each pixel also attends along the N slices,
with relative positions on queries, keys and values (Shaw 2018), delta = i - j of two slice numbers:

    f = (log(1 + max(delta, 0)), log(1 + max(-delta, 0)), [delta = 0]),   R = W silu(A f + B emb), W = 0 at the start
    a_ij = q_i k_j / sqrt d + q_i R^K_ij + k_j R^Q_ij,   out_i = sum_j softmax(a)_ij (v_j + R^V_ij)

All norms are per slice, so that a padded slot changes nothing.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.blocks import zeroed
from verisim.nets.norm import GroupNorm
from verisim.nets.unet import UNet, fold, unfold

Positions = Literal["relative", "absolute", "both"]
WAVES = 8  # frequencies of the absolute position


class SliceAttention(nn.Module):
    """x + attention of each pixel along the slices; starts as the identity."""

    def __init__(self, channels: int, head_channels: int, embedding: int, relative: bool = True) -> None:
        super().__init__()
        if channels % head_channels:
            raise VerisimError(
                f"Slice attention: {channels} channels cannot be split into heads of {head_channels}. Set "
                f"head_channels to a divisor of {channels}."
            )
        self.heads = channels // head_channels
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))
        self.distance = nn.Linear(3, channels) if relative else None
        self.noise = nn.Linear(embedding, channels)
        self.relative = zeroed(nn.Linear(channels, 3 * channels))

    def forward(
        self,
        x: Tensor,  # (B N, C, H, W)
        delta: Tensor,  # i - j of slice numbers, (B, N, N)
        emb: Tensor,  # (B N, E)
        present: Tensor,  # (B, N) bool; False = padding
    ) -> Tensor:
        """(B N, C, H, W)."""
        b, n = present.shape
        c, h = x.shape[1], self.heads
        tokens = self.norm(x).unflatten(0, (b, n)).flatten(3).permute(0, 3, 1, 2)  # (B, P, N, C), P pixels
        q, k, v = self.qkv(tokens).view(b, -1, n, 3, h, c // h).unbind(3)  # (B, P, N, h, d)
        logits = torch.einsum("bpihd,bpjhd->bphij", q, k) / math.sqrt(c // h)
        if self.distance is not None:
            hidden = self.distance(distance_features(delta)) + self.noise(emb).view(b, n, 1, c)
            r = self.relative(F.silu(hidden)).view(b, n, n, 3, h, c // h)
            rq, rk, rv = r.to(q.dtype).unbind(3)  # (B, N, N, h, d)
            logits = logits + torch.einsum("bpihd,bijhd->bphij", q, rk)
            logits = logits + torch.einsum("bpjhd,bijhd->bphij", k, rq)
        weight = logits.masked_fill(~present[:, None, None, None, :], -math.inf).softmax(-1)
        y = torch.einsum("bphij,bpjhd->bpihd", weight, v)
        if self.distance is not None:
            y = y + torch.einsum("bphij,bijhd->bpihd", weight, rv)
        y = self.out(y.reshape(b, -1, n, c)).permute(0, 2, 3, 1)  # (B, N, C, P)
        return x + y.reshape(x.shape)


def distance_features(delta: Tensor) -> Tensor:
    """(..., 3) float32 of differences of slice numbers (...)."""
    d = delta.float()
    return torch.stack([(1 + d.clamp(min=0)).log(), (1 - d.clamp(max=0)).log(), (d == 0).float()], -1)


def place_features(index: Tensor, depth: int) -> Tensor:
    """Sines and cosines (..., 2 WAVES) of slice numbers 0...depth - 1 along the volume."""
    u = index.float() / max(depth - 1, 1)
    angle = u[..., None] * (math.pi / 2) * torch.arange(1, WAVES + 1, device=index.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


class SliceUNet(nn.Module):
    """Slices, their numbers and which of them are known -> an answer for each slice."""

    def __init__(
        self,
        channels: int,  # C of a slice
        outputs: int,  # C' of the answer
        depth: int,  # slices in a volume
        widths: tuple[int, ...],  # channels per level, finest first
        blocks: int = 2,  # residual blocks per level
        attention: tuple[bool, ...]
        | None = None,  # in the slice and along slices, per level; None = the coarsest
        head_channels: int = 32,
        num_classes: int = 0,
        embedding: Literal["fourier", "sinusoidal"] = "fourier",
        positions: Positions = "both",  # how it knows which slice is which
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.depth, self.absolute = depth, positions != "relative"
        self.unet = UNet(
            spatial_dims=2,
            in_channels=channels + 1,
            out_channels=outputs,
            channels=widths,
            blocks=blocks,
            attention=attention,
            head_channels=head_channels,
            num_classes=num_classes,
            embedding=embedding,
            dropout=dropout,
            checkpointing=checkpointing,
            vector=2 * WAVES if self.absolute else 0,
        )
        self.stride = self.unet.stride
        levels = len(widths)
        attends = (*[False] * (levels - 1), True) if attention is None else attention
        order = [k for k in range(levels) for _ in range(blocks)]
        order = [
            *order,
            levels - 1,
            levels - 1,
            *reversed(order),
        ]  # level of each block, as the U-Net runs them
        self.along = nn.ModuleDict(
            {
                str(i): SliceAttention(widths[k], head_channels, 4 * widths[0], positions != "absolute")
                for i, k in enumerate(order)
                if attends[k]
            }
        )

    def forward(
        self,
        x: Tensor,  # (B, N, C, H, W)
        index: Tensor,  # (B, N) int64 slice numbers
        observed: Tensor,  # (B, N) bool: a clean slice, not a noisy one
        present: Tensor,  # (B, N) bool; False = padding
        c_noise: Tensor,  # (B,)
        label: Tensor | None = None,  # (B,)
    ) -> Tensor:
        """(B, N, C', H, W); sides must be multiples of `stride`."""
        b, n = index.shape
        net = self.unet
        mark = observed.to(x.dtype).view(b, n, 1, 1, 1).expand(-1, -1, 1, *x.shape[3:])
        frames = torch.cat([x, mark], 2).flatten(0, 1)  # (B N, C + 1, H, W)
        place = place_features(index, self.depth).flatten(0, 1) if self.absolute else None
        label = net.check_label(None if label is None else label.repeat_interleave(n), frames)
        emb = net.embedding(c_noise.repeat_interleave(n), label, place)  # (B N, E)
        delta = index[:, :, None] - index[:, None, :]

        h = net.conv_in(fold(frames.to(net.conv_in.weight.dtype), net.patch))
        skips: list[Tensor] = []
        down = len(net.down)
        for i, block in enumerate([*net.down, *net.middle, *net.up]):
            skip = skips.pop() if i >= down + len(net.middle) else None
            h = net.run(block, h, emb, skip)
            if str(i) in self.along:
                h = net.run(self.along[str(i)], h, delta, emb, present)
            if i < down:
                skips.append(h)
        h = net.conv_out(F.silu(net.norm_out(h)))
        return unfold(h, net.patch).to(x.dtype).unflatten(0, (b, n))
