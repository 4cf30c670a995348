"""The U-Net that every diffusion model of this package denoises with, in 2D and 3D.

Ho 2020 (appendix B) in its later form: FiLM from the noise level (Dhariwal 2021, section 3), resampling
inside the residual block (Song 2021; Karras 2022), attention where flagged.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.blocks import (
    CONV,
    Backbone,
    Block,
    EmbeddingKind,
    NoiseEmbedding,
    Padding,
    Resample,
    convolution,
    zeroed,
)
from verisim.nets.norm import GroupNorm

SkipKind = Literal["concat", "average"]


class UNet(Backbone):
    """Image (B, C, *S), noise level and class -> image (B, C', *S); the output is 0 at the start.

    Every side of S must be a multiple of `stride` = patch * 2^(levels - 1).
    """

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        in_channels: int,  # C of the input image
        out_channels: int,  # C' of the output image
        channels: tuple[int, ...],  # width of each level, finest first; each level halves the size
        blocks: int = 2,  # residual blocks per level, on the way down and again on the way up
        attention: tuple[bool, ...] | None = None,  # self-attention per level; None = the coarsest only
        head_channels: int = 64,  # channels per attention head; divides the width where it attends
        num_classes: int = 0,  # classes 0...num_classes - 1, then the null class; 0 = unconditional
        dropout: float = 0.0,  # probability inside the residual blocks
        embedding: EmbeddingKind = "fourier",  # "sinusoidal" where c_noise is a step number 0...999
        skip: SkipKind = "concat",  # "average": fewer operations, less memory
        patch: int = 1,  # side of the pixel patch folded into channels at entry: patch^dims times cheaper
        padding: Padding = "zeros",  # "circular" wraps around, for periodic images
        checkpointing: bool = False,  # recompute blocks in the backward pass: less memory, a third slower
        tokens: int = 0,  # width of a token sequence, read by cross-attention where it attends; 0 = none
        spatial: int = 0,  # channels of a map that shapes the middle and the way up (SPADE); 0 = none
        vector: int = 0,  # width of a condition vector, read by FiLM beside the noise level; 0 = none
    ) -> None:
        super().__init__()
        levels = len(channels)
        attends = (*[False] * (levels - 1), True) if attention is None else tuple(map(bool, attention))
        check_settings(spatial_dims, channels, blocks, attends, skip, patch)
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.conditions = {"tokens": tokens, "spatial": spatial, "vector": vector}
        self.patch = patch
        self.checkpointing = checkpointing
        self.stride = patch * 2 ** (levels - 1)

        width = 4 * channels[0]
        folded = patch**spatial_dims
        average = skip == "average"
        self.embedding = NoiseEmbedding(width, embedding, 2 * channels[0], num_classes, vector)
        self.conv_in = convolution(spatial_dims, in_channels * folded, channels[0], padding=padding)

        def block(
            a: int,
            level: int,
            skip: int = 0,
            move: Resample = "keep",
            attend: bool = True,
            shape: bool = True,
        ) -> Block:
            return Block(
                dims=spatial_dims,
                in_channels=a,
                out_channels=channels[level],
                embedding=width,
                skip_channels=skip,
                average=average,
                resample=move,
                head_channels=head_channels if attend and attends[level] else 0,
                dropout=dropout,
                padding=padding,
                tokens=tokens,
                spatial=spatial if shape else 0,
            )

        down, up = [], []
        now = channels[0]
        for i in range(levels):  # finest to coarsest; the first block of a level goes down to it
            for k in range(blocks):
                down.append(block(now, i, move="down" if i > 0 and k == 0 else "keep", shape=False))
                now = channels[i]
        middle = [block(now, levels - 1), block(now, levels - 1, attend=False)]
        for i in reversed(range(levels)):  # each block takes the output of its mirror image
            for k in range(blocks):
                move: Resample = "up" if i < levels - 1 and k == 0 else "keep"
                up.append(block(now, i, skip=channels[i], move=move))
                now = channels[i]
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.norm_out = GroupNorm(channels[0])
        self.conv_out = zeroed(convolution(spatial_dims, now, out_channels * folded, padding=padding))

    def min_feature_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the coarsest feature map for images of this size; VerisimError if size is illegal."""
        check_size(size, self.stride)
        return tuple(s // self.stride for s in size)

    def forward(
        self,
        x: Tensor,  # (B, C, *S)
        c_noise: Tensor,  # (B,) float32
        label: Tensor | None = None,  # (B,) int64; None = the null class
        *,
        tokens: Tensor | None = None,  # (B, M, tokens); None = an empty sequence
        token_mask: Tensor | None = None,  # (B, M) bool, True = a token, False = padding
        spatial: Tensor | None = None,  # (B, spatial, *S); None = zeros
        vector: Tensor | None = None,  # (B, vector); None = zeros
    ) -> Tensor:
        """(B, C', *S).

        The result has the dtype of x outside autocast. A condition that the net was not built for, or a
        size that is no multiple of `stride`, is a VerisimError.
        """
        check_size(tuple(x.shape[2:]), self.stride)
        check_conditions("U-Net", self.conditions, {"tokens": tokens, "spatial": spatial, "vector": vector})
        emb = self.embedding(c_noise, self.check_label(label, x), vector)  # (B, E)
        if self.conditions["spatial"] and spatial is None:
            spatial = x.new_zeros(len(x), self.conditions["spatial"], *x.shape[2:])
        conditions = (tokens, token_mask, spatial)
        h = self.conv_in(fold(x.to(self.conv_in.weight.dtype), self.patch))  # (B, C_0, *S / patch)
        skips = []
        for block in self.down:
            h = self.run(block, h, emb, None, *conditions)
            skips.append(h)
        for block in self.middle:
            h = self.run(block, h, emb, None, *conditions)
        for block in self.up:
            h = self.run(block, h, emb, skips.pop(), *conditions)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return unfold(h, self.patch).to(x.dtype).contiguous()


def check_conditions(net: str, built: dict[str, int], given: dict[str, Tensor | None]) -> None:
    """Raise VerisimError for a condition that the net was built without or for another width."""
    for name, value in given.items():
        if value is None:
            continue
        width = int(value.shape[-1 if name != "spatial" else 1])
        if width != built[name]:
            raise VerisimError(
                f"{net}: it was built with {name}={built[name]} but got a condition '{name}' of width {width}. "
                f"Build it with {name}={width}, or leave the condition out."
            )


def fold(x: Tensor, p: int) -> Tensor:
    """Patches of p pixels a side become channels: (B, C, *S) -> (B, C p^d, *S / p)."""
    if p == 1:
        return x
    b, c, *size = x.shape
    d = len(size)
    x = x.reshape(b, c, *[n for s in size for n in (s // p, p)])  # (B, C, S1/p, p, S2/p, p, ...)
    inner = [3 + 2 * i for i in range(d)]
    outer = [2 + 2 * i for i in range(d)]
    return x.permute(0, 1, *inner, *outer).reshape(b, c * p**d, *[s // p for s in size])


def unfold(x: Tensor, p: int) -> Tensor:
    """The inverse of fold: (B, C p^d, *S / p) -> (B, C, *S)."""
    if p == 1:
        return x
    b, c, *size = x.shape
    d = len(size)
    x = x.reshape(b, c // p**d, *[p] * d, *size)  # (B, C, p, p, ..., S1/p, S2/p, ...)
    order = [n for i in range(d) for n in (2 + d + i, 2 + i)]
    return x.permute(0, 1, *order).reshape(b, c // p**d, *[s * p for s in size])


def check_size(size: tuple[int, ...], stride: int, net: str = "U-Net") -> None:
    """Raise VerisimError, naming the nearest legal sizes, unless each side is a multiple of stride."""
    if all(s > 0 and s % stride == 0 for s in size):
        return
    below = tuple(max(stride, s // stride * stride) for s in size)
    above = tuple(max(stride, -(-s // stride) * stride) for s in size)
    nearest = " or ".join(dict.fromkeys("x".join(map(str, s)) for s in (below, above)))
    raise VerisimError(
        f"{net}: an image of {'x'.join(map(str, size))} cannot be halved evenly; every side must be a "
        f"multiple of {stride} (patch times 2 per level). Nearest legal: {nearest}. "
        f"Resize or pad the images, or use fewer levels."
    )


def check_settings(
    dims: int, channels: tuple[int, ...], blocks: int, attends: tuple[bool, ...], skip: str, patch: int
) -> None:
    """Raise VerisimError for settings that describe no network."""
    if dims not in CONV:
        raise VerisimError(f"U-Net: spatial_dims={dims}; it must be 2 or 3.")
    if not channels or min(channels) < 1:
        raise VerisimError(f"U-Net: channels={tuple(channels)}; give one positive width per level.")
    if blocks < 1 or patch < 1:
        raise VerisimError(f"U-Net: blocks={blocks}, patch={patch}; both must be 1 or more.")
    if len(attends) != len(channels):
        raise VerisimError(
            f"U-Net: attention has {len(attends)} flags for {len(channels)} levels. Give one per level."
        )
    if skip not in ("concat", "average"):
        raise VerisimError(f"U-Net: unknown skip '{skip}'. Known: average, concat.")
