"""IntroVAE: the encoder doubles as the discriminator, by its KL (source 001 section 6 S8, algorithm 4.1 corrected).

    L_E = KL(Enc x) + alpha ([m - KL(Enc sg x_r)]+ + [m - KL(Enc sg x_p)]+) + beta L_rec          (4.15a)
    L_G = alpha (KL(Enc x_r) + KL(Enc x_p)) + beta L_rec                                           (4.15b)

x_r = Dec(z), z ~ q(z | x); x_p = Dec(z_p), z_p ~ N(0, I). L_E trains the encoder alone and L_G the decoder
alone. Line 9 of the printed algorithm forgets the bracket behind alpha, and its decoder step reuses images
made before the encoder moved: here they are made anew. A plain VAE is trained first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.gaussian import frozen
from verisim.models.autoencoders.latent import LatentModel, LatentNet, PriorOptions
from verisim.models.autoencoders.likelihoods import squared_error
from verisim.models.autoencoders.trunk import Trunk, chosen_channels
from verisim.models.base import Loss

SLACK = 1.5  # nats per latent between the KL of real images and the automatic margin
MEMORY = 0.98  # of the running means that the automatic margin and weight come from


class IntroVAE(LatentModel):
    """IntroVAE on 2D or 3D images whose sides are 8 pixels or more; samples from N(0, I) by default.

    Trains with manual optimisation: a trainer's own gradient clipping does not apply (use `clip`), and each
    batch counts as two optimiser steps in Lightning's `global_step`. Squared errors are on the [0, 1] scale.
    Margin and beta may be left to the warm-up: m = K + 1.5 d and beta = C prod S / (2 L_rec), with K the mean
    KL and L_rec the mean squared error that the plain VAE reached. That is the sigma-VAE's own weight: a much
    smaller one makes the encoder give up its latents as soon as the game begins.
    """

    Options = PriorOptions
    skips_parameters = True  # each step trains one network and leaves the other's alone

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        latent: int = 50,  # d
        warmup_steps: int = 14000,  # batches of plain VAE training first (source: 100 epochs)
        alpha: float = 0.25,  # weight of the KL of made images (the source states none)
        beta: float = 0.0,  # weight of the squared error, summed over pixels in [0, 1]; 0 = automatic
        margin: float = 0.0,  # m, nats: made images are pushed up to this KL; 0 = automatic
        width: int = 32,  # channels of the stem; doubled at every halving
        max_width: int = 256,  # upper bound of channels
        kernel: int = 3,  # of the stride-1 convolutions (source: 4)
        norm: bool = True,  # group norm in the blocks (never batch norm: it tells real from made batches)
        embed: int = 32,  # length of a class embedding
        label_dropout: float = 0.1,  # share of training images that are shown without their class
        components: int = 10,  # of the ex-post mixture
        lr: float = 2e-4,  # Adam learning rate, both networks
        clip: float = 100.0,  # largest gradient norm per network; 0 = no clipping
        channels: tuple[int, ...] = (),  # of the trunk, one per halving; empty = by width and max_width
    ) -> None:
        trunk = Trunk(chosen_channels(spec.size, tuple(channels), width, max_width), kernel, norm)
        net = LatentNet(spec, trunk, latent, 2 * latent, num_classes, embed)
        super().__init__(spec, num_classes, net, latent, components, label_dropout, lr)
        self._check(warmup_steps, alpha, beta, margin)
        self.automatic_optimization = False
        self.warmup_steps = warmup_steps
        self.alpha, self.beta, self.margin = alpha, beta, margin
        self.clip = clip
        self.measured: Tensor
        self.register_buffer("measured", torch.zeros(2))  # running means of KL and squared error

    def _check(self, warmup_steps: int, alpha: float, beta: float, margin: float) -> None:
        if min(warmup_steps, alpha, beta, margin) < 0:
            raise VerisimError(
                f"warmup_steps={warmup_steps}, alpha={alpha:g}, beta={beta:g}, margin={margin:g}: none of them "
                f"may be negative."
            )
        if warmup_steps == 0 and 0 in (beta, margin):
            raise VerisimError(
                "With warmup_steps=0 nothing is measured that an automatic margin or beta could come from. "
                "Give both, e.g. margin 120 and beta 0.05, or a warm-up."
            )

    def generator_parameters(self) -> Iterable[nn.Parameter]:
        """Everything but the encoder: theta."""
        return (p for name, p in self.net.named_parameters() if not name.startswith("encoder."))

    def optimizer(self) -> list[torch.optim.Optimizer]:
        """[Adam of the encoder, Adam of the decoder with its class embedding]."""
        return [
            torch.optim.Adam(self.net.encoder.parameters(), self.lr),
            torch.optim.Adam(self.generator_parameters(), self.lr),
        ]

    # --- training ---------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """A step of the plain VAE during warm-up, then one of the encoder and one of the decoder."""
        x = batch["image"]  # (B, C, *S)
        group = self.training_groups(x, batch.get("label"))
        optimizer_e, optimizer_g = self.optimizers()  # type: ignore[attr-defined]
        if self.step < self.warmup_steps:
            parts = self.warmup_step(x, group, [optimizer_e, optimizer_g])
        else:
            z_p = torch.randn(len(x), self.latent, device=x.device)
            parts, z = self.encoder_step(x, group, z_p, optimizer_e)
            parts |= self.generator_step(x, group, z, z_p, optimizer_g)
        self.log_parts(parts)

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Both losses of an introspective step at once, for measuring what it needs."""
        group = self.training_groups(x, label)
        z_p = torch.randn(len(x), self.latent, device=x.device)
        loss_e, _, z = self.encoder_loss(x, group, z_p)
        return loss_e.mean() + self.generator_loss(x, group, z, z_p)[0].mean()

    def warmup_step(self, x: Tensor, group: Tensor, optimizers: list[Any]) -> dict[str, Tensor]:
        """Update both networks on the negative ELBO of the sigma-VAE, and measure what it reaches."""
        loss, parts = self.negative_elbo(x, group, beta=1.0)
        if torch.isfinite(loss).all():
            found = torch.stack([parts["kl"].mean(), parts["mse"].mean() * self.spec.dims / 4]).detach()
            first = self.measured[1] == 0
            self.measured.copy_(torch.where(first, found, self.measured.lerp(found, 1 - MEMORY)))
        self.descend(loss, optimizers, self.clip)
        parts.pop("nll")  # it has no counterpart later on, and a logger would repeat its last value
        return {"loss": loss, **parts}

    def encoder_step(self, x: Tensor, group: Tensor, z_p: Tensor, optimizer: Any) -> tuple[dict, Tensor]:
        """Update the encoder alone; returns the parts of its loss, and z ~ q(z | x)."""
        loss, parts, z = self.encoder_loss(x, group, z_p)
        self.descend(loss, [optimizer], self.clip)
        return {"loss_e": loss, **parts}, z

    def generator_step(self, x: Tensor, group: Tensor, z: Tensor, z_p: Tensor, optimizer: Any) -> dict:
        """Update the decoder alone, through images made anew; returns the parts of its loss."""
        loss, parts = self.generator_loss(x, group, z, z_p)
        self.descend(loss, [optimizer], self.clip)
        return {"loss_g": loss, "loss": loss, **parts}

    def encoder_loss(self, x: Tensor, group: Tensor, z_p: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """L_E (B,), eq 4.15a, with a hinge per image; its parts; and z (B, d). The decoder is frozen."""
        margin, beta = self.settled()
        with frozen(self.net.decoder, self.net.embedding):
            q = self.net.encode(x)
            z = q.draw()
            x_r, x_p = self.net.decode(z, group), self.net.decode(z_p, group)
        rec = squared_error(x_r, x)
        kl_r, kl_p = self.net.encode(x_r.detach()).rate(), self.net.encode(x_p.detach()).rate()  # (B,)
        hinges = (margin - kl_r).relu() + (margin - kl_p).relu()
        loss = q.rate() + self.alpha * hinges + beta * rec
        mse = 4 * rec / self.spec.dims  # back to [-1, 1]
        return loss, {"mse": mse, "kl_rec": kl_r, "kl_prior": kl_p, "margin": margin, **q.parts()}, z

    def generator_loss(self, x: Tensor, group: Tensor, z: Tensor, z_p: Tensor) -> Loss:
        """L_G (B,), eq 4.15b. The encoder is frozen, yet gradients pass through it to the images."""
        _, beta = self.settled()
        x_r, x_p = self.net.decode(z.detach(), group), self.net.decode(z_p, group)
        with frozen(self.net.encoder):
            kl_r, kl_p = self.net.encode(x_r).rate(), self.net.encode(x_p).rate()
        return self.alpha * (kl_r + kl_p) + beta * squared_error(x_r, x), {}

    def settled(self) -> tuple[Tensor, Tensor]:
        """Margin m and weight beta, as given or as the warm-up measured them; scalars."""
        kl, error = self.measured
        own = torch.where(error > 0, 0.5 * self.spec.dims / error, 1.0)  # nothing measured yet: 1
        margin = torch.full_like(kl, self.margin) if self.margin else kl + SLACK * self.latent
        return margin, torch.full_like(kl, self.beta) if self.beta else own
