"""Residual convolutional encoder and decoder, 2D and 3D (source 001 section 3, Table 5.2).

A strided stem, then residual blocks that halve the image and widen the features, then a head; the
decoder mirrors it. With channels (8, 16, 32, 64, 128, 256), kernel 4 and no norm this is the source's
VAE_50 at 256 px. Any size of 8 px or more per axis: what is not a multiple of 2^len(channels) is padded
by edge values and cropped back.

Head "dense": one linear layer between the coarsest grid and the features. Head "conv": a 1x1 convolution,
so that features are maps on that grid, flattened channel by channel; it costs 40 times fewer weights at
8,192 latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
LEAST_SIDE = 8  # pixels; below it nothing is left to halve
Head = Literal["dense", "conv"]


@dataclass(frozen=True)
class Trunk:
    """What an encoder and its decoder have in common."""

    channels: tuple[int, ...]  # of the stem and of each residual block, one per halving
    kernel: int = 3  # of the stride-1 convolutions (source 001: 4)
    norm: bool = True  # group norm in the blocks
    head: Head = "dense"  # between the coarsest grid and the features


def trunk_channels(size: tuple[int, ...], width: int, max_width: int) -> tuple[int, ...]:
    """width, 2 width, ... (at most max_width): one per halving until the shortest side is 4 to 7 px."""
    if len(size) not in CONV or min(size) < LEAST_SIDE:
        nearest = "x".join(str(max(n, LEAST_SIDE)) for n in size[:3]) if len(size) in CONV else "32x32"
        raise VerisimError(
            f"A convolutional autoencoder cannot take images of {'x'.join(map(str, size))} pixels: it needs 2 or 3 "
            f"axes of at least {LEAST_SIDE} pixels. Nearest: {nearest}."
        )
    halvings = (min(size) // 4).bit_length() - 1
    return tuple(min(width * 2**k, max_width) for k in range(halvings))


def chosen_channels(
    size: tuple[int, ...],  # S in pixels
    channels: tuple[int, ...],  # one per halving; empty = automatic
    width: int,  # of the stem when automatic
    max_width: int,  # upper bound when automatic
) -> tuple[int, ...]:
    """The channels given, if the image can be halved that often, else those of trunk_channels."""
    automatic = trunk_channels(size, width, max_width)
    if not channels:
        return automatic
    most = (2 * min(size) - 1).bit_length() - 1  # 2^most < 2 min(size): at least one position is left
    if len(channels) > most or min(channels) < 1:
        raise VerisimError(
            f"channels={list(channels)}: one number of 1 or more per halving, and images of "
            f"{'x'.join(map(str, size))} pixels can be halved {most} times at most. "
            f"Leave channels empty for {list(automatic)}."
        )
    return tuple(channels)


def coarsest_grid(size: tuple[int, ...], halvings: int) -> tuple[int, ...]:
    """Positions per axis that are left after padding and halving."""
    return tuple(m // 2**halvings for m in padded(size, halvings))


def whole_maps(n: int, grid: tuple[int, ...], what: str) -> int:
    """n / prod(grid), the number of maps that n values fill on `grid`; VerisimError if it is not whole."""
    positions = prod(grid)
    if n < positions or n % positions:
        shape = "x".join(map(str, grid))
        raise VerisimError(
            f"{what}={n} does not fill whole maps of {shape} = {positions} positions, which head=conv needs. "
            f"Nearest: {max(1, round(n / positions)) * positions}. Or choose head=dense."
        )
    return n // positions


def padded(size: tuple[int, ...], halvings: int) -> tuple[int, ...]:
    """`size` rounded up to multiples of 2^halvings."""
    unit = 2**halvings
    return tuple(-(-n // unit) * unit for n in size)


def same_conv(dims: int, before: int, after: int, kernel: int) -> nn.Module:
    """Stride-1 convolution that keeps the size; an even kernel pads one more at the far end."""
    conv = CONV[dims](before, after, kernel)
    return nn.Sequential(EdgeZeros(dims, kernel), conv)


class EdgeZeros(nn.Module):
    """Zero padding of (kernel - 1) pixels per axis, split as evenly as possible."""

    def __init__(self, dims: int, kernel: int) -> None:
        super().__init__()
        self.pad = ((kernel - 1) // 2, kernel // 2) * dims

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad)


def norm(channels: int, use: bool) -> nn.Module:
    """Group norm of 8 groups (1 if the channels do not divide), or nothing."""
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels) if use else nn.Identity()


class Down(nn.Module):
    """y = f(x) + shortcut(x) at half the size; f = conv - norm - LeakyReLU - conv 4x4 / 2 - norm."""

    def __init__(self, dims: int, before: int, after: int, kernel: int, use_norm: bool) -> None:
        super().__init__()
        self.shortcut = CONV[dims](before, after, 1, 2)
        self.main = nn.Sequential(
            same_conv(dims, before, after, kernel),
            norm(after, use_norm),
            nn.LeakyReLU(0.2),
            CONV[dims](after, after, 4, 2, 1),
            norm(after, use_norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.main(x) + self.shortcut(x), 0.2)


class Up(nn.Module):
    """y = f(x) + shortcut(x) at twice the size; the shortcut is 1x1 conv, then nearest neighbour.

    (The source's strided transposed 1x1 leaves a checkerboard of zeros.)
    """

    def __init__(self, dims: int, before: int, after: int, kernel: int, use_norm: bool) -> None:
        super().__init__()
        self.shortcut = CONV[dims](before, after, 1)
        self.main = nn.Sequential(
            same_conv(dims, before, after, kernel),
            norm(after, use_norm),
            nn.LeakyReLU(0.2),
            TRANSPOSED[dims](after, after, 4, 2, 1),
            norm(after, use_norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        short = F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest")
        return F.leaky_relu(self.main(x) + short, 0.2)


class Encoder(nn.Module):
    """Image (B, C, *S) -> features (B, out); with head "conv", out / prod(grid) maps, flattened."""

    def __init__(
        self,
        size: tuple[int, ...],  # S in pixels
        in_channels: int,  # C
        channels: tuple[int, ...],  # of the stem and of each residual block
        out: int,  # number of features
        kernel: int,  # of the stride-1 convolutions
        use_norm: bool,  # group norm after each convolution of a block
        head: Head = "dense",
    ) -> None:
        super().__init__()
        dims = len(size)
        full, grid = padded(size, len(channels)), coarsest_grid(size, len(channels))
        self.dense = head == "dense"
        self.pad = [p for n, m in zip(size[::-1], full[::-1]) for p in ((m - n) // 2, m - n - (m - n) // 2)]
        stem = nn.Sequential(CONV[dims](in_channels, channels[0], 4, 2, 1), nn.LeakyReLU(0.2))
        blocks = [Down(dims, a, b, kernel, use_norm) for a, b in pairwise(channels)]
        self.layers = nn.Sequential(stem, *blocks)
        if self.dense:
            self.head: nn.Module = nn.Linear(channels[-1] * prod(grid), out)
        else:
            self.head = CONV[dims](channels[-1], whole_maps(out, grid, "features"), 1)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.pad):
            x = F.pad(x, self.pad, mode="replicate")
        h = self.layers(x)
        return self.head(h.flatten(1)) if self.dense else self.head(h).flatten(1)


class Decoder(nn.Module):
    """Features (B, n) -> image-shaped output (B, C, *S), without a final non-linearity."""

    def __init__(
        self,
        size: tuple[int, ...],  # S in pixels
        out_channels: int,  # C
        channels: tuple[int, ...],  # of the encoder; used in reverse
        n: int,  # number of input features
        kernel: int,  # of the stride-1 convolutions
        use_norm: bool,  # group norm after each convolution of a block
        head: Head = "dense",
    ) -> None:
        super().__init__()
        dims = len(size)
        full, grid = padded(size, len(channels)), coarsest_grid(size, len(channels))
        self.size = size
        self.offset = [(m - s) // 2 for s, m in zip(size, full)]
        if head == "dense":
            self.head: nn.Module = nn.Linear(n, channels[-1] * prod(grid))
            self.before: tuple[int, ...] = (n,)
        else:
            maps = whole_maps(n, grid, "features")
            self.head = CONV[dims](maps, channels[-1], 1)
            self.before = (maps, *grid)
        self.after = (channels[-1], *grid)
        back = channels[::-1]
        blocks = [Up(dims, a, b, kernel, use_norm) for a, b in pairwise(back)]
        last = nn.Sequential(TRANSPOSED[dims](back[-1], back[-1], 4, 2, 1), nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*blocks, last, CONV[dims](back[-1], out_channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        h = F.leaky_relu(self.head(h.unflatten(1, self.before)), 0.2)
        out = self.layers(h.reshape(-1, *self.after))
        crop = tuple(slice(o, o + s) for o, s in zip(self.offset, self.size))
        return out[(slice(None), slice(None), *crop)]
