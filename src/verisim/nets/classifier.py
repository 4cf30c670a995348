"""A small residual network: judge of two-sample tests, and feature network of domain metrics."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.nets.blocks import CONV, convolution
from verisim.nets.norm import GroupNorm

SMALLEST = 16  # pixels per side


class ResidualUnit(nn.Module):
    """norm-SiLU-conv twice, beside a shortcut; `stride` 2 halves the size (rounded up)."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = CONV[dims](in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = convolution(dims, out_channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else CONV[dims](in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class Classifier(nn.Module):
    """Image (B, C, *S), every side >= 16 -> logits (B, K); `features` gives the layer before.

    The stem and each of the `depth` residual units halve the size. The units are 2 * width wide, in 3D
    only the last one (215k parameters in 2D, 290k in 3D). Features are the mean over positions, so any size gives the same D.
    """

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        in_channels: int,  # C
        num_outputs: int,  # K: classes, or 1 for a binary logit
        width: int = 32,  # channels of the stem
        depth: int = 3,  # residual units
        dropout: float = 0.0,  # probability, on the features before the last layer
    ) -> None:
        super().__init__()
        if spatial_dims not in CONV:
            raise VerisimError(f"Classifier: spatial_dims={spatial_dims}; it must be 2 or 3.")
        if depth < 1:
            raise VerisimError(f"Classifier: depth={depth}; it must be 1 or more.")
        wide_from = 1 if spatial_dims == 2 else depth  # 3x3x3 kernels are costly: widen late
        widths = [width * (2 if i >= wide_from else 1) for i in range(depth + 1)]
        self.stem = CONV[spatial_dims](in_channels, width, 3, stride=2, padding=1)
        self.units = nn.Sequential(*[ResidualUnit(spatial_dims, a, b, stride=2) for a, b in pairwise(widths)])
        self.norm = GroupNorm(widths[-1])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_outputs)
        self.dim = widths[-1]  # D

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, *S) -> (B, D): the mean over positions of the last activations."""
        if min(x.shape[2:]) < SMALLEST:
            size = "x".join(map(str, x.shape[2:]))
            raise VerisimError(
                f"Classifier: images of {size} are too small; every side must be {SMALLEST} or more."
            )
        h = self.units(self.stem(x))
        return F.silu(self.norm(h)).flatten(2).mean(2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, *S) -> logits (B, K)."""
        return self.head(self.dropout(self.features(x)))
