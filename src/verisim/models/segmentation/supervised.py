"""A supervised U-Net with Dice and cross-entropy: the upper reference of diffusion segmentation (source 002, J).

The network is MONAI's DynUNet, which is that of nnU-Net: strided convolutions down, transposed ones up,
concatenated skips, instance norm. It stands for nnU-Net's network and loss, not for its planning, its
augmentation or its ensembling over folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.patches import Start, check_patch, crop_starts, crops
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.base import Loss
from verisim.models.diffusion.backbones import cropped, padded
from verisim.models.segmentation.base import Prediction, SegmentationModel


class SupervisedSegmenter(SegmentationModel):
    """Image -> mask in one evaluation. Raises VerisimError on bad settings."""

    family = "supervised segmentation"

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        channels: tuple[int, ...] = (32, 64, 128, 256, 320),  # width per level, finest first
        patch: int = 0,  # side of the crops trained on, pixels; 0 = whole images
        crop: Start = "uniform",  # where crops begin: uniform | trapezoid | thesis
        norm: Literal["instance", "batch"] = "instance",
        lr: float = 1e-3,  # AdamW learning rate
        weight_decay: float = 1e-5,
        cosine_decay: bool = True,  # learning rate falls to 0 along half a cosine over the run
    ) -> None:
        from monai.networks.nets import DynUNet

        super().__init__(spec, num_classes)
        if len(channels) < 3 or min(channels) < 1:
            raise VerisimError(f"Supervised U-Net: channels={tuple(channels)}; give three levels or more.")
        if patch:
            check_patch(spec.size, patch)
        self.patch, self.crop = patch, crop
        self.lr, self.weight_decay, self.cosine_decay = lr, weight_decay, cosine_decay
        self.stride = 2 ** (len(channels) - 1)
        halves = [2] * (len(channels) - 1)
        self.net = DynUNet(
            spatial_dims=spec.spatial_dims,
            in_channels=spec.channels,
            out_channels=1,
            kernel_size=[3] * len(channels),
            strides=[1, *halves],
            upsample_kernel_size=halves,
            filters=list(channels),
            norm_name=norm,
        )

    def mask_loss(self, x: Tensor, mask: Tensor) -> Loss:
        """Soft Dice loss + binary cross-entropy (B,) of images (B, C, *S) and masks (B, 1, *S)."""
        if self.patch:
            starts = crop_starts(x.shape[2:], self.patch, len(x), self.crop)
            x, mask = (crops(v, starts, (self.patch,) * self.spec.spatial_dims) for v in (x, mask))
        logits = self._logits(x, self.net)
        dice = soft_dice_loss(logits.sigmoid(), mask)
        entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none").flatten(1).mean(1)
        return dice + entropy, {"dice_loss": dice, "entropy": entropy}

    @torch.no_grad()
    def predict(self, x: Tensor, seed: int | Sequence[int] = 0) -> Prediction:
        """Probability of foreground of images (B, C, *S) of any size; its variance is p (1 - p)."""
        self.check_images(x)
        net = self.sampling_net
        was_training = net.training
        net.eval()
        try:
            p = torch.cat([self._logits(row, net).sigmoid() for row in x.to(self.device).split(1)])
        finally:
            net.train(was_training)
        return Prediction(p, p * (1 - p), 1)

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the network."""
        return torch.optim.AdamW(self.net.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def lr_scale(self, step: int, total: int | None) -> float:
        """Half a cosine to 0 where the length of the run is known."""
        return 1.0 if not self.cosine_decay or not total else 0.5 * (1 + math.cos(math.pi * step / total))

    def _logits(self, x: Tensor, net: torch.nn.Module) -> Tensor:
        """(B, 1, *S) float32 for images of any size."""
        return cropped(net(padded(x, self.stride)), x.shape[2:]).float()


def soft_dice_loss(p: Tensor, mask: Tensor, epsilon: float = 1.0) -> Tensor:
    """1 - (2 sum(y p) + e) / (sum(y^2) + sum(p^2) + e) of each sample, (B,). Source 002, section 1.2."""
    p, y = p.flatten(1), mask.flatten(1)
    return 1 - (2 * (y * p).sum(1) + epsilon) / (y.square().sum(1) + p.square().sum(1) + epsilon)
