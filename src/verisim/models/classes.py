"""Models that know "no class" as a class of its own: some training images are shown without theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.models.autoencoders.gaussian import CHUNK, evaluating
from verisim.models.base import GenerativeModel


class NullClass(GenerativeModel):
    """Mixin base of class-conditional models with an embedding of num_classes + 1 rows, the last for "no class"."""

    label_dropout: float  # share of training images that are shown without their class
    latent: int  # d, length of the latent vector of an image

    def groups(self, n: int, label: Tensor | None) -> Tensor:
        """Class index (n,) of each image; num_classes stands for "no class"."""
        if label is None or self.num_classes == 0:
            return torch.full((n,), self.num_classes, device=self.device)
        return label

    def asked_groups(self, n: int, condition: Tensor | None) -> Tensor:
        """groups() of a checked condition."""
        return self.groups(n, self.check_condition(n, condition))

    def training_groups(self, x: Tensor, label: Tensor | None) -> Tensor:
        """groups() of a training batch, with some labels dropped."""
        group = self.groups(len(x), label)
        if self.num_classes:
            drop = torch.rand(len(x), device=x.device) < self.label_dropout
            group = torch.where(drop, self.num_classes, group)
        return group

    @torch.no_grad()
    def decoded(
        self,
        z: Tensor,  # (B, d)
        condition: Tensor | None,  # (B,)
        image_of: Callable[[Any, Tensor, Tensor], Tensor],  # sampling network, latents, classes -> (b, C, *S)
    ) -> Tensor:
        """Images (B, C, *S) of latents, some at a time. VerisimError for latents of another shape."""
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise VerisimError(
                f"Latents of shape {tuple(z.shape)}; this model takes (B, {self.latent}), as encode() gives."
            )
        group = self.asked_groups(len(z), condition)
        images = torch.empty(len(z), *self.spec.shape, device=self.device)
        with evaluating(self.sampling_net) as net:
            for i in range(0, len(z), CHUNK):
                part = slice(i, i + CHUNK)
                images[part] = image_of(net, z[part].to(self.device), group[part])
        return images
