"""The network of a diffusion model: a U-Net or a transformer, on images of any size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.nets.blocks import EmbeddingKind
from verisim.nets.dit import DiT
from verisim.nets.unet import UNet


@dataclass(frozen=True)
class Backbone:
    """Settings of the network; what the other kind needs is ignored."""

    kind: Literal["unet", "dit"]
    patch: int  # side of the pixel patch that becomes channels (unet) or a token (dit)
    head_channels: int
    checkpointing: bool
    dropout: float
    channels: tuple[int, ...]  # unet, as the next three
    blocks: int
    attention: tuple[bool, ...]  # () = the coarsest level only
    skip: Literal["concat", "average"]
    width: int  # dit, as the next four
    depth: int
    positions: Literal["sincos", "rope"]
    mask_share: float
    full_blocks: int
    allow_small_features: bool = False
    tokens: int = 0  # unet: width of a token sequence to read; 0 = none
    extra: int = 0  # unet: channels that come beside those to be denoised

    def build(self, spec: ImageSpec, outputs: int, num_classes: int, embedding: EmbeddingKind) -> UNet | DiT:
        """The network with `outputs` channels for images of `spec`. VerisimError on bad settings."""
        if self.kind == "dit":
            return self._dit(spec, outputs, num_classes, embedding)
        if self.kind != "unet":
            raise VerisimError(f"Unknown backbone '{self.kind}'. Known: dit, unet.")
        if self.mask_share:
            raise VerisimError(
                "mask_share leaves tokens out and needs backbone dit; for a U-Net set it to 0."
            )
        net = UNet(
            spatial_dims=spec.spatial_dims,
            in_channels=spec.channels + self.extra,
            out_channels=outputs,
            channels=tuple(self.channels),
            blocks=self.blocks,
            attention=tuple(self.attention) or None,
            head_channels=self.head_channels,
            num_classes=num_classes,
            dropout=self.dropout,
            embedding=embedding,
            skip=self.skip,
            patch=self.patch,
            checkpointing=self.checkpointing,
            tokens=self.tokens,
        )
        if not self.allow_small_features:
            _check_feature_size(spec.size, int(net.stride))
        return net

    def _dit(self, spec: ImageSpec, outputs: int, num_classes: int, embedding: EmbeddingKind) -> DiT:
        if not 0 <= self.mask_share < 1:
            raise VerisimError(
                f"mask_share = {self.mask_share:g}: the share of tokens left out is 0 to 0.75."
            )
        if self.dropout:
            raise VerisimError("dropout is a setting of the U-Net; for backbone dit set it to 0.")
        return DiT(
            spatial_dims=spec.spatial_dims,
            in_channels=spec.channels,
            out_channels=outputs,
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            head_channels=self.head_channels,
            num_classes=num_classes,
            embedding=embedding,
            positions=self.positions,
            masked=self.mask_share > 0,
            full_blocks=min(self.full_blocks, self.depth),
            checkpointing=self.checkpointing,
        )


def on_any_size(
    net: Callable[..., Tensor],  # F(x, c_noise, label)
    stride: int,
    precision: AbstractContextManager,
    x: Tensor,  # (B, C, *S)
    c_noise: Tensor,  # (B,)
    label: Tensor | None,  # (B,)
) -> Tensor:
    """net on images of any size: padded to its stride by reflection, cropped back; float32."""
    size = x.shape[2:]
    x = padded(x, stride)
    with precision:
        f = net(x, c_noise, label)
    return cropped(f, size).float()


def cropped(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """The first `size` values of x (B, C, *S) along every spatial axis."""
    for axis, s in enumerate(size, start=2):
        x = x.narrow(axis, 0, s)
    return x


def padded(x: Tensor, stride: int) -> Tensor:
    """x (B, C, *S) with every side a multiple of stride: reflected at the far end, or repeated if too small."""
    size = x.shape[2:]
    pad = [p for s in reversed(size) for p in (0, -s % stride)]  # last dimension first
    if not any(pad):
        return x
    reflect = all(p < s for p, s in zip(pad[1::2], reversed(size)))
    return F.pad(x, pad, mode="reflect" if reflect else "replicate")


def _check_feature_size(size: tuple[int, ...], stride: int) -> None:
    """The coarsest feature map must be at least 4 pixels wide (source 004: below, images turn black)."""
    if min(-(-s // stride) for s in size) < 4:
        raise VerisimError(
            f"Images of {'x'.join(map(str, size))} shrink to fewer than 4 pixels in a U-Net that divides by "
            f"{stride}. Use fewer levels (shorter `channels`) or images of at least {4 * stride} pixels; "
            f"allow_small_features=true overrides this."
        )
