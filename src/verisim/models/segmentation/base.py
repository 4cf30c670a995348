"""What every segmenting model shares: it trains on images with masks and predicts the foreground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.models.base import GenerativeModel, Loss


@dataclass(frozen=True)
class Prediction:
    """The foreground of images (B, C, *S), seen `members` times."""

    mean: Tensor  # (B, 1, *S) in [0, 1]: probability of foreground; above 0.5 it is
    variance: Tensor  # (B, 1, *S) in [0, 0.25]: over the members; p (1 - p) for a model with one answer
    members: int

    @property
    def mask(self) -> Tensor:
        """(B, 1, *S) bool."""
        return self.mean > 0.5


class SegmentationModel(GenerativeModel):
    """Base of models with the role Segmenter. Two classes: background and what the mask marks."""

    can_sample: ClassVar[bool] = False

    def mask_loss(self, x: Tensor, mask: Tensor) -> Loss:
        """Per-sample loss (B,) and its parts, images (B, C, *S) in [-1, 1], mask (B, 1, *S) 0 or 1, float32."""
        raise NotImplementedError

    def predict(self, x: Tensor, seed: int | Sequence[int] = 0) -> Prediction:
        """The foreground of images (B, C, *S) in [-1, 1], of any size; seeds (one per image, or one) decide all."""
        raise NotImplementedError

    def segment(self, x: Tensor) -> Tensor:
        """x (B, C, *S) in [-1, 1] -> probabilities (B, 2, *S) of background and foreground."""
        mean = self.predict(x).mean
        return torch.cat([1 - mean, mean], dim=1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if batch.get("mask") is None:
            raise VerisimError(
                "This model learns from masks, and the training images have none. Name them with --data.mask: a "
                "column of manifest.csv, or a structure of the phantom, e.g. lesion."
            )
        loss, parts = self.mask_loss(batch["image"], foreground(batch["mask"]))
        self.log_parts({"loss": loss, **parts})
        return loss.mean() if self.is_finite(loss) else None

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The loss with bright pixels in place of a mask: as dear as a training step, but meaningless."""
        return self.mask_loss(x, (x[:, :1] > 0).float())[0].mean()

    def check_images(self, x: Tensor) -> None:
        """VerisimError unless x has the dimensions and channels that the model was trained on."""
        if x.ndim != 2 + self.spec.spatial_dims or x.shape[1] != self.spec.channels:
            raise VerisimError(
                f"This model segments {self.spec.spatial_dims}D images of {self.spec.channels} channel(s); got a "
                f"tensor of shape {tuple(x.shape)}. Give (B, {self.spec.channels}, "
                f"{'H, W' if self.spec.spatial_dims == 2 else 'D, H, W'})."
            )


def foreground(mask: Tensor) -> Tensor:
    """Codes (B, 1, *S) -> 1.0 wherever the code is not 0: all labels of a tumour are one (source 002, C.6)."""
    return (mask > 0).float()
