"""Perceptual and adversarial terms of an autoencoder that must not blur: VQGAN (Esser 2021), latent diffusion.

    L = L_own + p d(x, x^) + a lambda [-D(x^)]                                   of the autoencoder
    L_D = 1/2 (max(0, 1 - D(x)) + max(0, 1 + D(x^)))                             of the discriminator
    lambda = |grad L_rec| / (|grad [-D(x^)]| + 1e-4), in [0, 1e4]                gradients at the last layer

L_rec = -log p(x | z) per dimension + p d(x, x^); d: perceptual.py; D scores patches, and the mean over them counts.
Before `discriminator_start` batches D neither learns nor counts. Specs: 000, C5b; 003, 16-J. Any autoencoder takes
part that says what it reconstructed (`reconstruction`) and with which weight its decoder ends (`last_weight`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.models.adversarial.losses import HINGE
from verisim.models.autoencoders.gaussian import frozen
from verisim.models.autoencoders.perceptual import PerceptualDistance, perceptual_distance
from verisim.models.base import GenerativeModel, Loss
from verisim.nets.patch_discriminator import PatchDiscriminator, score_grid

LEAST_GRADIENT = 1e-4  # keeps lambda finite
LARGEST_WEIGHT = 1e4  # of lambda
DISCRIMINATOR_BETAS = (0.5, 0.9)  # Adam


@dataclass(frozen=True)
class RealismTerms:
    """Settings of the terms; both are off by default. VerisimError for what cannot be meant."""

    perceptual_weight: float = 0.0  # p; 0 = no perceptual term
    perceptual: str = "random"  # whose features: "random", or a file
    adversarial: float = 0.0  # a; 0 = no discriminator
    discriminator_start: int = 0  # batches before it begins
    discriminator_layers: int = 3  # of stride 2
    discriminator_width: int = 64  # channels of its first layer
    discriminator_lr: float = 0.0  # Adam learning rate; 0 = the autoencoder's
    clip: float = 1.0  # largest gradient norm of either player; 0 = no clipping

    def __post_init__(self) -> None:
        for name in ("perceptual_weight", "adversarial", "discriminator_start", "discriminator_lr", "clip"):
            if not getattr(self, name) >= 0:
                raise VerisimError(f"{name} is {getattr(self, name):g}; it must be 0 or more.")
        if self.discriminator_width < 1:
            raise VerisimError(
                f"discriminator_width is {self.discriminator_width}; it must be at least 1, usual is 64."
            )


@dataclass(frozen=True)
class Reconstruction:
    """What one training pass of an autoencoder gives."""

    loss: Tensor  # (B,) the model's own loss
    parts: dict[str, Tensor] = field(default_factory=dict)
    image: Tensor | None = None  # (B, C, *S) in [-1, 1], with gradient; None: this step reconstructs nothing
    error: Tensor | None = None  # (B,) -log p(x | z) per dimension, the part of the loss that compares images


class Realism(GenerativeModel):
    """Mixin in front of an autoencoder's base. With a discriminator it trains with manual optimisation.

    A trainer's own gradient clipping does not apply then (use `clip`), and each batch with both players counts as two
    optimiser steps in Lightning's `global_step`. Both players see the same reconstructions. The discriminator is
    in checkpoints, not in weights files.
    """

    terms: RealismTerms
    discriminator: PatchDiscriminator | None
    distance: (
        PerceptualDistance | None
    )  # from a file: read when a run begins, a finished model does without it

    def set_terms(self, terms: RealismTerms) -> None:
        """Call it last in the constructor."""
        self.terms = terms
        self.discriminator = self.distance = None
        if terms.perceptual_weight and terms.perceptual == "random":
            self.read_distance()
        if terms.adversarial:
            score_grid(self.spec.size, terms.discriminator_layers)
            self.discriminator = PatchDiscriminator(
                self.spec.spatial_dims,
                self.spec.channels,
                terms.discriminator_width,
                terms.discriminator_layers,
            )
            self.automatic_optimization = False
            self.skips_parameters = True  # each step trains one player and leaves the other alone

    def read_distance(self) -> None:
        """Build the feature network if one is asked for and not there yet."""
        if self.terms.perceptual_weight and self.distance is None:
            self.distance = perceptual_distance(self.terms.perceptual, self.spec).to(self.device)

    def meet(self, images: Images) -> None:
        super().meet(images)
        self.read_distance()

    def prepare(self, x: Tensor) -> None:
        super().prepare(x)
        self.read_distance()

    def with_discriminator(
        self, optimizer: torch.optim.Optimizer, lr: float
    ) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        """The autoencoder's optimiser, and the discriminator's Adam behind it where there is one."""
        if self.discriminator is None:
            return optimizer
        lr = self.terms.discriminator_lr or lr
        return [optimizer, torch.optim.Adam(self.discriminator.parameters(), lr, DISCRIMINATOR_BETAS)]

    # --- what a model writes ----------------------------------------------------------------------

    def reconstruction(self, x: Tensor, label: Tensor | None) -> Reconstruction:
        """One training pass over images x (B, C, *S), without these terms."""
        raise NotImplementedError

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the decoder's last layer."""
        raise NotImplementedError

    # --- losses -----------------------------------------------------------------------------------

    @property
    def judged(self) -> bool:
        """True once the discriminator has begun."""
        return self.discriminator is not None and self.step >= self.terms.discriminator_start

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """L (B,) of the autoencoder, and its parts. The discriminator gets no gradient."""
        return self.with_terms(x, self.reconstruction(x, label), self.judged)

    def with_terms(self, x: Tensor, found: Reconstruction, judged: bool) -> Loss:
        """L (B,) of a reconstruction of images x; without terms, the model's own loss as it is."""
        loss, parts, error = found.loss, dict(found.parts), found.error
        if found.image is None or error is None:
            return loss, parts
        if self.distance is not None:
            seen = self.terms.perceptual_weight * self.distance(found.image, x)
            loss, error = loss + seen, error + seen
            parts["perceptual"] = seen
        if self.discriminator is not None and judged:
            with frozen(self.discriminator):
                score = per_image(HINGE.generator(self.discriminator(found.image)))
            weight = adaptive_weight(error.mean(), score.mean(), self.last_weight)
            loss = loss + self.terms.adversarial * weight * score
            parts |= {"adversarial": score, "adaptive_weight": weight}
        return loss, parts

    def discriminator_loss(self, x: Tensor, image: Tensor) -> Loss:
        """L_D (B,) of images x and detached reconstructions (B, C, *S), and the scores of both."""
        assert self.discriminator is not None
        real, made = self.discriminator(x), self.discriminator(image)
        loss = 0.5 * per_image(HINGE.discriminator(real, made))
        return loss, {"d_real": per_image(real), "d_made": per_image(made)}

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        """All losses of a step at once, the discriminator's too, for measuring what it needs."""
        found = self.reconstruction(x, label)
        loss = self.with_terms(x, found, judged=True)[0].mean()
        if self.discriminator is not None and found.image is not None:
            loss = loss + self.discriminator_loss(x, found.image.detach())[0].mean()
        return loss

    # --- steps ------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        """The usual step; with a discriminator one of the autoencoder, then one of the discriminator."""
        if self.discriminator is None:
            return super().training_step(batch, batch_idx)
        x = batch["image"]  # (B, C, *S)
        optimizer, optimizer_d = self.optimizers()  # type: ignore[attr-defined]
        found = self.reconstruction(x, self.condition_of(batch.get("label"), batch.get("text")))
        loss, parts = self.with_terms(x, found, self.judged)
        stepped = self.descend(loss, [optimizer], self.terms.clip)
        parts = {"loss": loss, **parts}
        if stepped and self.judged and found.image is not None:
            parts |= self.discriminator_step(x, found.image.detach(), optimizer_d)
        self.log_parts(parts)
        return None

    def discriminator_step(self, x: Tensor, image: Tensor, optimizer: Any) -> dict[str, Tensor]:
        """Update the discriminator alone; returns the parts of its loss."""
        loss, parts = self.discriminator_loss(x, image)
        self.descend(loss, [optimizer], self.terms.clip)
        return {"d_loss": loss, **parts}


def per_image(scores: Tensor) -> Tensor:
    """Mean over the patches of scores (B, 1, *P): (B,)."""
    return scores.flatten(1).mean(1)


def adaptive_weight(error: Tensor, score: Tensor, at: Tensor) -> Tensor:
    """|d error / d at| / (|d score / d at| + 1e-4), in [0, 1e4], a scalar without gradient; both terms are scalars.

    1 where no gradient is asked for, as in a forward pass alone.
    """
    if not (error.requires_grad and score.requires_grad and at.requires_grad):
        return torch.ones_like(error)
    norms = [torch.autograd.grad(term, at, retain_graph=True)[0].float().norm() for term in (error, score)]
    return (norms[0] / (norms[1] + LEAST_GRADIENT)).clamp(0, LARGEST_WEIGHT).detach()
