"""The encoder half of guided diffusion's U-Net (Dhariwal 2021) with a pooled answer: one number per noised image.

Residual blocks whose second norm is scaled and shifted by the step's embedding; between levels such a block halves the
size; self-attention where flagged and in the middle; attention pooling at the end (spec 002, M.3). The pooling learns a
position for each place of the coarsest map, so the network is made for one image size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.blocks import AVG_POOL, convolution, zeroed
from verisim.nets.guided_unet import StepEmbedding, norm
from verisim.nets.unet import check_size


class GuidedEncoder(nn.Module):
    """(B, C, *size) and step numbers (B,) -> (B, outputs)."""

    def __init__(
        self,
        size: tuple[int, ...],  # of the images; every side a multiple of 2^(levels - 1)
        in_channels: int,  # C
        outputs: int = 1,
        channels: tuple[int, ...] = (128, 128, 256, 256, 512, 512),  # width per level, finest first
        depth: int = 4,  # residual blocks per level
        attention: tuple[bool, ...] = (False, False, False, True, True, True),  # per level
        head_channels: int = 64,  # channels per attention head
        groups: int = 32,  # of every norm
    ) -> None:
        super().__init__()
        levels, dims, width = len(channels), len(size), 4 * channels[0]
        check_size(size, 2 ** (levels - 1), "guided encoder")
        if len(attention) != levels or depth < 1:
            raise VerisimError(
                f"guided encoder: {len(attention)} flags of attention for {levels} levels, depth={depth}; give one flag "
                f"per level and at least one block."
            )
        self.size = tuple(size)
        self.embedding = StepEmbedding(channels[0], width)
        self.conv_in = convolution(dims, in_channels, channels[0])
        parts: list[nn.Module] = []
        now = channels[0]
        for i, c in enumerate(channels):
            for _ in range(depth):
                parts.append(ScaledBlock(dims, now, c, width, groups))
                now = c
                if attention[i]:
                    parts.append(Heads(now, head_channels, groups))
            if i < levels - 1:
                parts.append(ScaledBlock(dims, now, now, width, groups, halve=True))
        parts += [
            ScaledBlock(dims, now, now, width, groups),
            Heads(now, head_channels, groups),
            ScaledBlock(dims, now, now, width, groups),
        ]
        self.parts = nn.ModuleList(parts)
        self.norm_out = nn.GroupNorm(groups, now)
        places = 1
        for s in size:
            places *= s // 2 ** (levels - 1)
        self.pool = AttentionPool(places, now, head_channels, outputs)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """x (B, C, *size), step (B,) 0...999 -> (B, outputs)."""
        if tuple(x.shape[2:]) != self.size:
            raise VerisimError(
                f"guided encoder: images of {tuple(x.shape[2:])}; it was made for {self.size} only."
            )
        emb = self.embedding(step)
        h = self.conv_in(x)
        for part in self.parts:
            h = part(h, emb)
        return self.pool(F.silu(norm(self.norm_out, h)))


class ScaledBlock(nn.Module):
    """h + conv(silu((1 + s(e)) norm(conv(silu(norm(h)))) + t(e))), on half the size if `halve`."""

    def __init__(
        self,
        dims: int,  # 2 or 3
        in_channels: int,
        out_channels: int,
        embedding: int,  # width of the step embedding
        groups: int,
        halve: bool = False,
    ) -> None:
        super().__init__()
        self.halve = halve
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = convolution(dims, in_channels, out_channels)
        self.modulation = nn.Linear(embedding, 2 * out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        self.conv2 = zeroed(convolution(dims, out_channels, out_channels))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else convolution(dims, in_channels, out_channels, kernel=1)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """h (B, C_in, *S), emb (B, E) -> (B, C_out, *S or *S / 2)."""
        y = F.silu(norm(self.norm1, h))
        if self.halve:
            pool = AVG_POOL[h.ndim - 2]
            h, y = pool(h, 2), pool(y, 2)
        y = norm(self.norm2, self.conv1(y))
        s, t = (m.view(*m.shape, *[1] * (y.ndim - 2)) for m in self.modulation(F.silu(emb)).chunk(2, dim=1))
        return self.shortcut(h) + self.conv2(F.silu((1 + s) * y + t))


def attend(qkv: Tensor, head_channels: int) -> Tensor:
    """Attention of tokens (B, N, 3C), heads of head_channels -> (B, N, C)."""
    b, n, c = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(b, n, 3, c // head_channels, head_channels).permute(2, 0, 3, 1, 4)  # (B, h, N, d)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)


class Heads(nn.Module):
    """h + attention over all positions; starts as the identity."""

    def __init__(self, channels: int, head_channels: int, groups: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise VerisimError(
                f"Attention: {channels} channels cannot be split into heads of {head_channels}."
            )
        self.head_channels = head_channels
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        tokens = norm(self.norm, h).flatten(2).transpose(1, 2)  # (B, N, C)
        y = self.out(attend(self.qkv(tokens), self.head_channels))
        return h + y.transpose(1, 2).reshape(h.shape)


class AttentionPool(nn.Module):
    """The answer that the mean token, among all tokens with their positions, gets by attention."""

    def __init__(self, places: int, channels: int, head_channels: int, outputs: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.positions = nn.Parameter(torch.randn(places + 1, channels) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, outputs)

    def forward(self, h: Tensor) -> Tensor:
        """h (B, C, *S) -> (B, outputs)."""
        tokens = h.flatten(2).transpose(1, 2)  # (B, N, C)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self.positions.to(h.dtype)
        return self.out(attend(self.qkv(tokens), self.head_channels)[:, 0])
