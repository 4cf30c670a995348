"""Models that know "no class" as a class of its own: some training images are shown without theirs."""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.models.base import GenerativeModel


class NullClass(GenerativeModel):
    """Mixin base of class-conditional models with an embedding of num_classes + 1 rows, the last for "no class"."""

    label_dropout: float  # share of training images that are shown without their class

    def groups(self, n: int, label: Tensor | None) -> Tensor:
        """Class index (n,) of each image; num_classes stands for "no class"."""
        if label is None or self.num_classes == 0:
            return torch.full((n,), self.num_classes, device=self.device)
        return label

    def training_groups(self, x: Tensor, label: Tensor | None) -> Tensor:
        """groups() of a training batch, with some labels dropped."""
        group = self.groups(len(x), label)
        if self.num_classes:
            drop = torch.rand(len(x), device=x.device) < self.label_dropout
            group = torch.where(drop, self.num_classes, group)
        return group
