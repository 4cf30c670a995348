"""Soft-IntroVAE: an exponential of the ELBO of made images instead of IntroVAE's hinge (K-X3; Daniel 2021).

With ELBO losses F(y; w) = beta L_rec(y) + w KL(Enc y), s = 1 / (C prod S):

    L_E = s F(x; 1) + 1/4 sum_{y = x_r, x_p} exp(-2 s F(sg y; b_neg))                   (their eq 4, alpha = 2)
    L_G = s [beta L_rec(x) + 1/2 sum_{y = x_r, x_p} (KL(Enc y) + gamma beta L_rec(y))]

The push on made images fades by itself once exp(-2 s b_neg KL) is small: there is no margin to choose, but
where it fades is set by b_neg: at KL = ln(b_neg / 2) / (2 s b_neg), if reconstruction of made images is good.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.gaussian import frozen
from verisim.models.autoencoders.intro_vae import IntroVAE
from verisim.models.autoencoders.likelihoods import squared_error
from verisim.models.base import Loss


class SoftIntroVAE(IntroVAE):
    """Soft-IntroVAE; warm-up, steps, sampling and roles are those of IntroVAE."""

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        latent: int = 50,  # d
        warmup_steps: int = 14000,  # batches of plain VAE training first
        beta: float = 0.0,  # weight of the squared error, summed over pixels in [0, 1]; 0 = automatic
        negative: float = 256.0,  # b_neg, weight of the KL of made images in the encoder's loss
        gamma: float = 1e-8,  # weight of the reconstruction of made images in the decoder's loss
        width: int = 32,  # channels of the stem; doubled at every halving
        max_width: int = 256,  # upper bound of channels
        kernel: int = 3,  # of the stride-1 convolutions (source: 4)
        norm: bool = True,  # group norm in the blocks
        embed: int = 32,  # length of a class embedding
        label_dropout: float = 0.1,  # share of training images that are shown without their class
        components: int = 10,  # of the ex-post mixture
        lr: float = 2e-4,  # Adam learning rate, both networks
        clip: float = 100.0,  # largest gradient norm per network; 0 = no clipping
        channels: tuple[int, ...] = (),  # of the trunk, one per halving; empty = by width and max_width
    ) -> None:
        if negative <= 0 or gamma < 0:
            raise VerisimError(
                f"negative={negative:g}, gamma={gamma:g}: negative must be above 0 and gamma 0 or more. "
                f"The method's authors use 256 and 1e-8."
            )
        super().__init__(
            spec,
            num_classes,
            latent=latent,
            warmup_steps=warmup_steps,
            beta=beta,
            margin=1.0,  # unused
            width=width,
            max_width=max_width,
            kernel=kernel,
            norm=norm,
            embed=embed,
            label_dropout=label_dropout,
            components=components,
            lr=lr,
            clip=clip,
            channels=channels,
        )
        self.negative, self.gamma = negative, gamma

    def encoder_loss(self, x: Tensor, group: Tensor, z_p: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """L_E (B,), its parts, and z (B, d). The decoder is frozen."""
        beta, s = self.settled()[1], 1 / self.spec.dims
        with frozen(self.net.decoder, self.net.embedding):
            q = self.net.encode(x)
            z = q.draw()
            x_r, x_p = self.net.decode(z, group), self.net.decode(z_p, group)
            rec = squared_error(x_r, x)
            made, kls = torch.zeros_like(rec), []
            for y in (x_r.detach(), x_p.detach()):
                q_y = self.net.encode(y)
                again = squared_error(self.net.decode(q_y.draw(), group), y)
                made = made + torch.exp(-2 * s * (beta * again + self.negative * q_y.rate()))
                kls.append(q_y.rate())
        loss = s * (beta * rec + q.rate()) + 0.25 * made
        parts = {"mse": 4 * rec / self.spec.dims, "kl_rec": kls[0], "kl_prior": kls[1], "push": made / 2}
        return loss, {**parts, **q.parts()}, z

    def generator_loss(self, x: Tensor, group: Tensor, z: Tensor, z_p: Tensor) -> Loss:
        """L_G (B,). The encoder is frozen, yet gradients pass through it to the images."""
        beta, s = self.settled()[1], 1 / self.spec.dims
        x_r, x_p = self.net.decode(z.detach(), group), self.net.decode(z_p, group)
        made = torch.zeros(len(x), device=x.device)
        for y in (x_r, x_p):
            with frozen(self.net.encoder):
                q_y = self.net.encode(y)
            again = squared_error(self.net.decode(q_y.draw().detach(), group), y.detach())
            made = made + q_y.rate() + self.gamma * beta * again
        return s * (beta * squared_error(x_r, x) + 0.5 * made), {}
