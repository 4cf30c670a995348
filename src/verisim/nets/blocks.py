"""The parts of the U-Net, for images (B, C, H, W) and volumes (B, C, D, H, W) alike.

One block with flags does everything: keep, halve or double the resolution, take a skip, attend.
The memory order of the input is kept, so a net converted to channels-last runs in it throughout.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from verisim.errors import VerisimError
from verisim.nets.conditioning import SPADE, CrossAttention
from verisim.nets.norm import FiLM, GroupNorm

CONV: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
AVG_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}

Resample = Literal["keep", "down", "up"]
Padding = Literal["zeros", "circular"]
EmbeddingKind = Literal["fourier", "sinusoidal"]


def convolution(
    dims: int,  # 2 or 3
    in_channels: int,
    out_channels: int,
    kernel: int = 3,  # odd; the size is kept
    padding: Padding = "zeros",  # what lies outside the image
) -> nn.Conv2d | nn.Conv3d:
    """A convolution that keeps the image size; padding "circular" wraps around."""
    return CONV[dims](in_channels, out_channels, kernel, padding=kernel // 2, padding_mode=padding)


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters set to 0: a residual branch that starts as nothing."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class SelfAttention(nn.Module):
    """x + attention over all positions, heads of `head_channels`; starts as the identity."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise VerisimError(
                f"Attention: {channels} channels cannot be split into heads of {head_channels}. "
                f"Set head_channels to a divisor of {channels}."
            )
        self.heads = channels // head_channels
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C) with N = prod(S)
        qkv = self.qkv(tokens).view(b, -1, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, h, N, d) each
        y = F.scaled_dot_product_attention(q, k, v)  # (B, h, N, d)
        y = self.out(y.transpose(1, 2).reshape(b, -1, c))  # (B, N, C)
        return x + y.transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    """Residual block: resample, take the skip, norm-SiLU-conv, FiLM-SiLU-dropout-conv, attend."""

    def __init__(
        self,
        dims: int,  # 2 or 3
        in_channels: int,  # channels of x
        out_channels: int,
        embedding: int,  # width of the noise and class embedding
        skip_channels: int = 0,  # channels of the skip that joins x; 0 = none
        average: bool = False,  # join by (x + skip) / 2 instead of concatenation
        resample: Resample = "keep",  # "down" halves and "up" doubles every side first
        head_channels: int = 0,  # channels per attention head; 0 = no attention
        dropout: float = 0.0,  # probability
        padding: Padding = "zeros",
        tokens: int = 0,  # width of the tokens to attend to, where it attends at all; 0 = none
        spatial: int = 0,  # channels of the map that scales and shifts both norms (SPADE); 0 = none
    ) -> None:
        super().__init__()
        self.resample = resample
        self.average = average and skip_channels > 0
        width = skip_channels if self.average else in_channels + skip_channels
        match = self.average and in_channels != skip_channels  # a mean needs equal widths
        self.match = convolution(dims, in_channels, width, kernel=1) if match else nn.Identity()
        self.norm1 = GroupNorm(width)
        self.conv1 = convolution(dims, width, out_channels, padding=padding)
        self.norm2 = FiLM(out_channels, embedding)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(convolution(dims, out_channels, out_channels, padding=padding))
        same = width == out_channels
        self.shortcut = nn.Identity() if same else convolution(dims, width, out_channels, kernel=1)
        self.attention = SelfAttention(out_channels, head_channels) if head_channels else nn.Identity()
        self.cross = CrossAttention(out_channels, tokens, head_channels) if head_channels and tokens else None
        self.spade1 = SPADE(CONV[dims], width, spatial) if spatial else None
        self.spade2 = SPADE(CONV[dims], out_channels, spatial) if spatial else None

    def forward(
        self,
        x: Tensor,  # (B, C_in, *S)
        emb: Tensor,  # (B, E)
        skip: Tensor | None = None,  # (B, C_skip, *S')
        tokens: Tensor | None = None,  # (B, M, T)
        token_mask: Tensor | None = None,  # (B, M) bool
        spatial: Tensor | None = None,  # (B, L, *any)
    ) -> Tensor:
        """(B, C_out, *S')."""
        x = resampled(self.match(x), self.resample)
        if skip is not None:
            x = (x + skip) / 2 if self.average else torch.cat([x, skip], dim=1)
        h = self.norm1(x) if self.spade1 is None else self.spade1(self.norm1(x), spatial)
        h = self.conv1(F.silu(h))
        h = self.norm2(h, emb)
        h = h if self.spade2 is None else self.spade2(h, spatial)
        h = self.conv2(self.dropout(F.silu(h)))
        h = self.attention(self.shortcut(x) + h)
        return h if self.cross is None else self.cross(h, tokens, token_mask)


def resampled(x: Tensor, how: Resample) -> Tensor:
    """x at half (2x mean), the same, or double (nearest) size along every axis; dtype is kept."""
    if how == "down":  # in float32 where the CPU has no bfloat16 kernel
        v = x.float() if x.ndim == 5 and x.device.type == "cpu" else x
        return AVG_POOL[x.ndim - 2](v, 2).to(x.dtype)
    if how == "up":
        return doubled(x)
    return x


def doubled(x: Tensor) -> Tensor:
    """x (B, C, *S) -> (B, C, *2S), each value repeated along every axis (nearest neighbour).

    On a CPU, torch's own kernel is quick in channels-last order only. Otherwise a product with a 0/1
    matrix doubles the columns, and joining each row with its copy the rows: exact, 5 to 15 times faster.
    """
    if x.device.type != "cpu" or not x.is_contiguous():
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    b, c, *size = x.shape
    w = size[-1]
    twice = torch.eye(w, dtype=x.dtype).repeat_interleave(2, dim=1)  # (W, 2W)
    with torch.autocast("cpu", enabled=False):
        y = (x.reshape(-1, w) @ twice).view(b, c, *size[:-1], 2 * w)
    for _ in size[1:]:
        y = torch.cat([y, y], dim=-1).flatten(-2)
    return y.view(b, c, *[2 * s for s in size])


class Backbone(nn.Module):
    """What networks share that denoise images of a class: recomputing blocks, and the null class."""

    num_classes: int  # 0 = none
    checkpointing: bool

    def run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        """block(*inputs), recomputed in the backward pass if `checkpointing`."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def check_label(self, label: Tensor | None, x: Tensor) -> Tensor | None:
        """label, the null class in its place if None, or None for a net without classes."""
        if self.num_classes == 0:
            if label is not None:
                raise VerisimError(
                    f"This {type(self).__name__} was built without classes (num_classes=0) but got a label. "
                    "Pass label=None or build it with num_classes."
                )
            return None
        if label is None:
            return torch.full((len(x),), self.num_classes, dtype=torch.long, device=x.device)
        return label


class NoiseEmbedding(nn.Module):
    """Noise level and class -> (B, width), float32.

    "fourier" suits c_noise = ln(sigma) / 4 (Karras 2022, table 1) and flow times in [0, 1]: cosines and
    sines of 2 pi f c with f at the quantiles of N(0, 1). "sinusoidal" suits step numbers 0...999:
    frequencies 1...1e-4, geometric (Vaswani 2017, section 3.5).
    """

    frequencies: Tensor

    def __init__(
        self,
        width: int,
        kind: EmbeddingKind,
        features: int,
        num_classes: int,  # 0 = none
        vector: int = 0,  # width of a condition vector; its projection starts at 0; 0 = none
    ) -> None:
        super().__init__()
        i = (torch.arange(features // 2, dtype=torch.float64) + 0.5) / (features // 2)  # in (0, 1)
        known = {
            "fourier": lambda: 2 * math.pi * torch.special.ndtri(0.5 + i / 2),
            "sinusoidal": lambda: 10000.0 ** -(i - i[0]),
        }
        if kind not in known:
            raise VerisimError(f"Unknown noise embedding '{kind}'. Known: {', '.join(known)}.")
        self.register_buffer("frequencies", known[kind]().float())
        self.hidden, self.out = nn.Linear(features, width), nn.Linear(width, width)
        self.classes = nn.Embedding(num_classes + 1, width) if num_classes else None
        self.vector = nn.Linear(vector, width) if vector else None
        if self.vector is not None:
            zeroed(self.vector)

    def forward(self, c_noise: Tensor, label: Tensor | None, vector: Tensor | None = None) -> Tensor:
        """c_noise (B,), label (B,) in 0...num_classes (the last is the null class), vector (B, V) -> (B, width)."""
        angle = c_noise.float()[:, None] * self.frequencies.float()  # (B, F/2)
        features = torch.cat([angle.cos(), angle.sin()], dim=1)  # (B, F)
        with torch.autocast(c_noise.device.type, enabled=False):
            emb = self.out(F.silu(self.hidden(features.to(self.hidden.weight.dtype))))
            if self.classes is not None:
                emb = emb + self.classes(label)
            if self.vector is not None:
                if vector is None:
                    vector = emb.new_zeros(len(emb), self.vector.in_features)
                emb = emb + self.vector(vector.to(emb.dtype))
            return F.silu(emb)
