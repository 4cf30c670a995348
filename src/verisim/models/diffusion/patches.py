"""Patch diffusion: trained on patches that know their place, run on the whole image. Wang 2023; spec 003, 16-F.

The network sees a noisy patch beside the coordinates of its pixels in the whole image; it is convolutional, so
that for sampling it takes the whole image with all coordinates, in one pass: no tiles, no seams. Memory in
training is that of a patch. What is far apart is learned from the larger patches alone, or not at all.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from verisim.data.patches import coordinates, crop_coordinates, crops, random_corners
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.base import Loss
from verisim.models.diffusion.backbones import padded
from verisim.models.diffusion.denoising import DenoisingDiffusion
from verisim.models.diffusion.training_noise import Noise
from verisim.nets.blocks import Padding, convolution
from verisim.nets.norm import by_pixel
from verisim.nets.unet import UNet
from verisim.seeding import generator as seeded


class CoordinateNet(nn.Module):
    """A U-Net that also reads where its pixels lie: x (B, C, *P), corners (B, d) or None = whole -> (B, C', *P)."""

    places: Tensor

    def __init__(self, unet: UNet, size: tuple[int, ...], use: bool = True) -> None:
        super().__init__()
        self.unet = unet
        self.size, self.stride, self.use = size, unet.stride, use
        self.register_buffer("places", padded(coordinates(size)[None], unet.stride)[0], persistent=False)
        if use:
            widen_input(unet, len(size))

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, corners: Tensor | None = None
    ) -> Tensor:
        if not self.use:
            return self.unet(x, c_noise, label)
        crop = tuple(x.shape[2:])
        if corners is None:
            if crop != tuple(self.places.shape[1:]):
                raise VerisimError(
                    f"Patch diffusion: {'x'.join(map(str, crop))} pixels without a place; the whole image has "
                    f"{'x'.join(map(str, self.places.shape[1:]))}. Pass corners for a patch."
                )
            where = self.places.expand(len(x), *self.places.shape)
        else:
            where = crop_coordinates(self.size, corners.to(x.device), crop)
        return self.unet(torch.cat([x, where.to(x.dtype)], dim=1), c_noise, label)


@torch.no_grad()
def widen_input(unet: UNet, more: int) -> None:
    """Let the U-Net read `more` further channels, with weights 0 at the start."""
    old = unet.conv_in
    extra = more * unet.patch ** (old.weight.ndim - 2)
    padding: Padding = "circular" if old.padding_mode == "circular" else "zeros"
    new = convolution(old.weight.ndim - 2, old.in_channels + extra, old.out_channels, padding=padding)
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    assert new.bias is not None and old.bias is not None
    new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.in_channels += more


class PatchDiffusion(DenoisingDiffusion):
    """A diffusion model of pixels trained on patches with coordinates. Raises VerisimError on bad settings."""

    net: CoordinateNet

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        patches: tuple[float, ...] = (0.25, 0.5, 1.0),  # side of a patch, as a share of the image's
        chances: tuple[float, ...] = (0.2, 0.3, 0.5),  # how often each is drawn
        copies: tuple[int, ...] = (4, 2, 1),  # patches cut from each image of the batch
        coordinates: bool = True,  # False: the ablation that does not know where it is
        norm: Literal["pixel", "group"] = "pixel",  # pixel: the same on patch and whole; group: by all pixels
        parametrisation: Literal["edm", "epsilon", "x0", "v", "flow"] = "edm",
        sigma_data: float = 0.5,  # standard deviation of the images in [-1, 1]
        noise: Noise = "auto",  # of training; vp_...: steps of that grid
        min_snr_gamma: float = 0.0,  # min-SNR weighting, e.g. 5; 0 = off
        channels: tuple[int, ...] = (64, 128, 256),  # width per level, finest first
        blocks: int = 2,  # residual blocks per level
        attention: tuple[bool, ...] = (),  # self-attention per level; () = none, as it too sees all pixels
        head_channels: int = 32,  # channels per attention head
        skip: Literal["concat", "average"] = "concat",
        checkpointing: bool = False,  # recompute in the backward pass: less memory, a third slower
        dropout: float = 0.0,
        label_dropout: float = 0.1,  # share of labels replaced by the null class in training
        lr: float = 2e-4,  # Adam learning rate
        betas: tuple[float, float] = (0.9, 0.999),  # Adam
        warmup: int = 0,  # steps of linear learning-rate warm-up
        cosine_decay: bool = False,  # learning rate falls to 0 along half a cosine over the run
        sampler: str = "auto",  # default sampling options; "auto" and 0 = by parametrisation
        schedule: str = "auto",
        steps: int = 0,
        clip: Literal["auto", "on", "off"] = "auto",
        allow_small_features: bool = False,  # permit feature maps below 4 pixels (for demonstrations)
    ) -> None:
        super().__init__(
            spec,
            num_classes,
            parametrisation=parametrisation,
            sigma_data=sigma_data,
            noise=noise,
            min_snr_gamma=min_snr_gamma,
            channels=channels,
            blocks=blocks,
            attention=tuple(attention) or (False,) * len(channels),
            head_channels=head_channels,
            skip=skip,
            checkpointing=checkpointing,
            dropout=dropout,
            label_dropout=label_dropout,
            lr=lr,
            betas=betas,
            warmup=warmup,
            cosine_decay=cosine_decay,
            sampler=sampler,
            schedule=schedule,
            steps=steps,
            clip=clip,
            allow_small_features=allow_small_features,
        )
        self.crops = [patch_size(spec.size, share, self.stride) for share in patches]
        self.chances, self.copies = tuple(chances), tuple(copies)
        _check(patches, self.chances, self.copies)
        if norm == "pixel":
            by_pixel(self.net)
        self.net = CoordinateNet(cast(UNet, self.net), spec.size, coordinates)

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Weighted denoising error (B,) of patches of images x (B, C, *S), one size of patch per step."""
        crop, copies = self.draw_patch()
        label = self._drop_labels(label)
        x = x.repeat_interleave(copies, 0)  # (B k, C, *S)
        label = None if label is None else label.repeat_interleave(copies)
        whole = crop == self.spec.size
        corners = None if whole else random_corners(len(x), self.spec.size, crop, step=self.stride)
        x = x if corners is None else crops(x, corners, crop)
        network = partial(self._network, partial(self.net, corners=corners), nullcontext())
        sigma = self.draw_sigma(len(x)).to(x)
        p = self.parametrisation
        loss = p.loss(network, x, torch.randn_like(x), sigma, label, self.min_snr_gamma)
        return loss.view(-1, copies).mean(1), {"sigma": sigma, "patch": torch.tensor(float(max(crop)))}

    def draw_patch(self) -> tuple[tuple[int, ...], int]:
        """Size and copies of this step's patches; the same on all devices."""
        at = torch.rand((), generator=seeded("patch", self.seed, self.step)) * sum(self.chances)
        k = int((torch.tensor(self.chances).cumsum(0) <= at).sum())
        k = min(k, len(self.crops) - 1)
        return self.crops[k], self.copies[k]


def patch_size(size: tuple[int, ...], share: float, stride: int) -> tuple[int, ...]:
    """Sides of a patch: a share of the image's, rounded to multiples of stride; the image itself at share 1."""
    if not 0 < share <= 1:
        raise VerisimError(
            f"patches = {share:g}: a patch is a share of the image's side in (0, 1], e.g. 0.5."
        )
    if share == 1:
        return size
    sides = tuple(max(stride, round(share * s / stride) * stride) for s in size)
    return tuple(min(p, s // stride * stride) or s for p, s in zip(sides, size))


def _check(patches: tuple[float, ...], chances: tuple[float, ...], copies: tuple[int, ...]) -> None:
    """Raise VerisimError unless each size of patch has a chance and a number of copies."""
    fits = len(patches) == len(chances) == len(copies) > 0
    if not fits or min(chances) < 0 or sum(chances) <= 0 or min(copies) < 1:
        raise VerisimError(
            f"patches {tuple(patches)}, chances {chances}, copies {copies}: give each size a chance (0 or more, not "
            f"all 0) and a number of copies (1 or more)."
        )
