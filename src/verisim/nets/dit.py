"""The diffusion transformer, in 2D and 3D. Peebles 2023 (DiT); masked training after Zheng 2024 (MaskDiT).

Patches of the image become tokens; every block is modulated by noise level, class and vector, and starts
as the identity (adaLN-Zero). In training a share of the tokens may be left out of most blocks: cheaper
steps, and the loss counts the tokens that were kept.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.blocks import Backbone, EmbeddingKind, NoiseEmbedding, zeroed
from verisim.nets.unet import check_conditions, check_size, fold, unfold

PositionKind = Literal["sincos", "rope"]


class DiT(Backbone):
    """Image (B, C, *S), noise level and condition -> image (B, C', *S); the output is 0 at the start.

    Every side of S must be a multiple of `stride` = patch. Any size works, also one not trained on.
    """

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        in_channels: int,  # C of the input image
        out_channels: int,  # C' of the output image
        patch: int = 2,  # side of a token in pixels; halving it makes 2^dims times as many tokens
        width: int = 256,  # channels of a token
        depth: int = 8,  # blocks
        head_channels: int = 64,  # channels per attention head; divides width
        num_classes: int = 0,  # classes 0...num_classes - 1, then the null class; 0 = unconditional
        vector: int = 0,  # width of a condition vector; 0 = none
        embedding: EmbeddingKind = "fourier",  # "sinusoidal" where c_noise is a step number 0...999
        positions: PositionKind = "sincos",  # added to the tokens | rotating queries and keys
        masked: bool = False,  # can be trained with tokens left out (it then has a learned blank token)
        full_blocks: int = 2,  # last blocks that see all tokens where some are left out
        checkpointing: bool = False,  # recompute blocks in the backward pass: less memory, a third slower
    ) -> None:
        super().__init__()
        _check_settings(spatial_dims, patch, width, depth, head_channels, positions, full_blocks)
        self.num_classes = num_classes
        self.conditions = {"vector": vector}
        self.patch = self.stride = patch
        self.positions, self.full_blocks, self.checkpointing = positions, full_blocks, checkpointing
        self.width, self.head_channels = width, head_channels
        self.embedding = NoiseEmbedding(width, embedding, width, num_classes, vector)
        self.enter = nn.Linear(in_channels * patch**spatial_dims, width)
        self.blank = nn.Parameter(0.02 * torch.randn(1, 1, width)) if masked else None
        self.blocks = nn.ModuleList(DiTBlock(width, head_channels) for _ in range(depth))
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.leave = zeroed(nn.Linear(width, out_channels * patch**spatial_dims))

    def forward(
        self,
        x: Tensor,  # (B, C, *S)
        c_noise: Tensor,  # (B,) float32
        label: Tensor | None = None,  # (B,) int64; None = the null class
        *,
        vector: Tensor | None = None,  # (B, vector); None = zeros
        keep: Tensor | None = None,  # (B, K) int64, the tokens that most blocks see; None = all
    ) -> Tensor:
        """(B, C', *S) in the dtype of x outside autocast. VerisimError for sizes and conditions that do not fit."""
        check_size(tuple(x.shape[2:]), self.stride, "DiT")
        check_conditions("DiT", self.conditions, {"vector": vector})
        emb = self.embedding(c_noise, self.check_label(label, x), vector)  # (B, W)
        folded = fold(x.to(self.enter.weight.dtype), self.patch)  # (B, C p^d, *grid)
        grid = tuple(folded.shape[2:])
        h = self.enter(folded.flatten(2).transpose(1, 2))  # (B, N, W)
        place = self.place(grid, x.device)  # (N, W) or (N, d, 2)
        if self.positions == "sincos":
            h = h + place.to(h.dtype)
        h = self.walk(h, emb, place, keep)
        s, t = self.modulation(emb).to(h.dtype)[:, None].chunk(2, dim=2)  # (B, 1, W)
        h = self.leave(F.layer_norm(h, h.shape[-1:]) * (1 + s) + t)  # (B, N, C' p^d)
        return unfold(h.transpose(1, 2).reshape(len(x), -1, *grid), self.patch).to(x.dtype).contiguous()

    def walk(self, h: Tensor, emb: Tensor, place: Tensor, keep: Tensor | None) -> Tensor:
        """All blocks: the first on the kept tokens, the last `full_blocks` on all."""
        turns = place if self.positions == "rope" else None
        if keep is None:
            for block in self.blocks:
                h = self.run(block, h, emb, turns)
            return h
        if self.blank is None:
            raise VerisimError("This DiT sees all tokens; build it with masked=True to leave some out.")
        index = keep[..., None].expand(-1, -1, h.shape[2])  # (B, K, W)
        kept, kept_turns = h.gather(1, index), None if turns is None else turns[keep]  # (B, K, d, 2)
        first = len(self.blocks) - self.full_blocks
        for block in self.blocks[:first]:
            kept = self.run(block, kept, emb, kept_turns)
        blank = self.blank.expand_as(h)
        if turns is None:  # a blank token knows its place
            blank = blank + place.to(h.dtype)
        h = blank.to(kept.dtype).scatter(1, index, kept)
        for block in self.blocks[first:]:
            h = self.run(block, h, emb, turns)
        return h

    def place(self, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """Where each token is: sums to add (N, W), or turns (N, d / 2, 2) as cosines and sines."""
        if self.positions == "sincos":
            return sincos(grid, self.width, device)
        return turns(grid, self.head_channels, device)

    def tokens_kept(self, x: Tensor, share_dropped: float) -> tuple[Tensor, Tensor]:
        """Random tokens to keep (B, K), and the weight of each pixel (B, 1, *S) whose mean is 1."""
        grid = [s // self.patch for s in x.shape[2:]]
        n = math.prod(grid)
        k = max(1, round(n * (1 - share_dropped)))
        keep = torch.rand(len(x), n).argsort(1)[:, :k].to(x.device)
        weight = torch.zeros(len(x), n, device=x.device, dtype=x.dtype).scatter(1, keep, n / k)
        weight = weight.view(len(x), 1, *grid)
        for axis in range(2, x.ndim):
            weight = weight.repeat_interleave(self.patch, dim=axis)
        return keep, weight


class DiTBlock(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the embedding; starts as the identity."""

    def __init__(self, width: int, head_channels: int) -> None:
        super().__init__()
        self.heads = width // head_channels
        self.modulation = zeroed(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        # the exact GELU: on CPUs its approximation by a tanh takes four times as long
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, emb: Tensor, turns: Tensor | None) -> Tensor:
        """x (B, N, W), emb (B, W), turns (N, d / 2, 2) or (B, N, d / 2, 2) or None -> (B, N, W)."""
        b, n, w = x.shape
        s1, t1, g1, s2, t2, g2 = self.modulation(emb).to(x.dtype)[:, None].chunk(6, dim=2)  # (B, 1, W)
        y = torch.addcmul(t1, F.layer_norm(x, (w,)), 1 + s1)
        q, k, v = self.qkv(y).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, h, N, d)
        if turns is not None:
            q, k = turned(q, turns), turned(k, turns)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, w)
        x = torch.addcmul(x, g1, self.out(y))
        return torch.addcmul(x, g2, self.mlp(torch.addcmul(t2, F.layer_norm(x, (w,)), 1 + s2)))


def sincos(grid: tuple[int, ...], width: int, device: torch.device) -> Tensor:
    """(N, width): sines and cosines of each axis's coordinate in tokens, side by side; unused channels are 0."""
    per_axis = width // (2 * len(grid))  # frequencies
    frequency = 10000.0 ** (-torch.arange(per_axis, device=device) / per_axis)
    parts = []
    for coordinate in coordinates(grid, device):  # (N,)
        angle = coordinate[:, None] * frequency  # (N, F)
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, dim=1)
    return F.pad(table, (0, width - table.shape[1]))


def turns(grid: tuple[int, ...], head_channels: int, device: torch.device) -> Tensor:
    """(N, head_channels / 2, 2): cosine and sine of each pair's angle; pairs are shared out over the axes.

    Su 2021 (RoPE) per axis: the product of a query and a key then depends on their distance alone.
    """
    per_axis = head_channels // (2 * len(grid))
    frequency = 100.0 ** (-torch.arange(per_axis, device=device) / per_axis)  # 1 ... 1/100 per token
    angle = torch.cat([c[:, None] * frequency for c in coordinates(grid, device)], dim=1)  # (N, F dims)
    angle = F.pad(angle, (0, head_channels // 2 - angle.shape[1]))
    return torch.stack([angle.cos(), angle.sin()], dim=2)


def coordinates(grid: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """Coordinate of every token along each axis, (N,) float32 each, in the order of flatten()."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in grid]
    return [c.flatten() for c in torch.meshgrid(*axes, indexing="ij")]


def turned(q: Tensor, turns: Tensor) -> Tensor:
    """q (B, h, N, d) with its pairs of channels rotated by turns (..., N, d / 2, 2)."""
    table = turns if turns.ndim == 3 else turns[:, None]  # (N, d/2, 2) or (B, 1, N, d/2, 2)
    cos, sin = table.to(q.dtype).unbind(-1)
    a, b = q.chunk(2, dim=3)  # (B, h, N, d/2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=3)


def _check_settings(
    dims: int, patch: int, width: int, depth: int, head_channels: int, positions: str, full_blocks: int
) -> None:
    """Raise VerisimError for settings that describe no network."""
    if dims not in (2, 3):
        raise VerisimError(f"DiT: spatial_dims={dims}; it must be 2 or 3.")
    if patch < 1 or depth < 1:
        raise VerisimError(f"DiT: patch={patch}, depth={depth}; both must be 1 or more.")
    if head_channels < 2 * dims or head_channels % 2 or width % head_channels:
        raise VerisimError(
            f"DiT: width={width} with head_channels={head_channels}; heads need an even width of at least "
            f"{2 * dims} that divides the tokens' width, e.g. width=256 and head_channels=64."
        )
    if positions not in ("sincos", "rope"):
        raise VerisimError(f"DiT: unknown positions '{positions}'. Known: rope, sincos.")
    if not 0 <= full_blocks <= depth:
        raise VerisimError(f"DiT: full_blocks={full_blocks}; it must be 0 to depth={depth}.")
