"""The convolutional VAE: VAE_50 and VAE_8192 of source 001, X-V-fix of source 004; beta-VAE and plain
autoencoder by settings.

ELBO(x) = E_q [log p(x | z)] - KL(q(z | x) || p(z)), p(z) = N(0, I) or a VampPrior (vamp_prior.py), with a residual
trunk (source 001 section 3), a likelihood whose scale is found rather than assumed, KL warm-up, and log variances kept
in [-15, 8].
The loss is the negative ELBO in nats per dimension, so that clipping and learning rate mean the same
at every image and batch size. Perceptual and adversarial terms: realism.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError, pick
from verisim.models.autoencoders.gaussian import PointPosterior, Posterior
from verisim.models.autoencoders.latent import LatentModel, LatentNet
from verisim.models.autoencoders.realism import Realism, RealismTerms, Reconstruction
from verisim.models.autoencoders.trunk import Trunk, chosen_channels
from verisim.seeding import generator

POSTERIORS = {"gaussian": Posterior, "point": PointPosterior}  # name -> how encoder outputs are read
PRIORS = {"normal": False, "vamp": True}  # name -> does it have pseudo-inputs?


class ConvVAE(Realism, LatentModel):
    """Convolutional VAE on 2D or 3D images whose sides are 8 pixels or more (padded and cropped inside).

    With posterior "point" it is a plain autoencoder: no noise, no KL, a rate of 0.
    """

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        latent: int = 64,  # d
        width: int = 32,  # channels of the stem; doubled at every halving
        max_width: int = 256,  # upper bound of channels
        kernel: int = 3,  # of the stride-1 convolutions (source 001: 4)
        norm: bool = True,  # group norm in the blocks
        likelihood: Literal["sigma", "laplace", "discretised_logistic", "bce"] = "sigma",  # p(x | z)
        sigma: Literal["optimal", "learned", "fixed"] = "optimal",  # its scale; fixed = the plain error
        beta: float = 1.0,  # final weight of the KL
        kl_warmup: int = 200,  # steps over which that weight rises from 0
        free_bits: float = 0.0,  # nats per latent that cost nothing; 0 = off
        embed: int = 32,  # length of a class embedding
        label_dropout: float = 0.1,  # share of training images that are shown without their class
        components: int = 10,  # of the ex-post mixture
        lr: float = 1e-3,  # Adam learning rate
        channels: tuple[int, ...] = (),  # of the trunk, one per halving; empty = by width and max_width
        head: Literal["dense", "conv"] = "dense",  # conv = latents are maps on the coarsest grid
        posterior: Literal["gaussian", "point"] = "gaussian",  # point = plain autoencoder
        reduction: Literal["sum", "mean"] = "sum",  # of -log p over pixels; mean = as printed, a trap
        betas: tuple[float, float] = (0.9, 0.999),  # Adam
        perceptual_weight: float = 0.0,  # of the perceptual term; 0 = none
        perceptual: str = "random",  # whose features it compares: random, or FILE of save_features
        adversarial: float = 0.0,  # weight of the adversarial term; 0 = no discriminator
        discriminator_start: int = 0,  # batches before the discriminator begins
        discriminator_layers: int = 3,  # of stride 2; it judges patches of 9 * 2^layers - 2 pixels
        discriminator_width: int = 64,  # channels of its first layer
        discriminator_lr: float = 0.0,  # Adam learning rate of the discriminator; 0 = lr
        clip: float = 1.0,  # largest gradient norm of either player, in place of training.clip; 0 = none
        prior: Literal["normal", "vamp"] = "normal",  # p(z); vamp = mixture of posteriors at learned images
        pseudo_inputs: int = 100,  # K, how many of them; each costs a pass of the encoder per step
    ) -> None:
        vamp = pick(PRIORS, prior, "prior")
        if vamp:
            check_vamp(pseudo_inputs, posterior, free_bits)
        trunk = Trunk(chosen_channels(spec.size, tuple(channels), width, max_width), kernel, norm, head)
        family = POSTERIORS[posterior]
        outputs = 2 * latent if family is Posterior else latent
        net = LatentNet(
            spec,
            trunk,
            latent,
            outputs,
            num_classes,
            embed,
            likelihood,
            sigma,
            family,
            pseudo_inputs if vamp else 0,
        )
        super().__init__(spec, num_classes, net, latent, components, label_dropout, lr)
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.reduction = reduction
        self.betas = betas
        self.set_terms(
            RealismTerms(
                perceptual_weight,
                perceptual,
                adversarial,
                discriminator_start,
                discriminator_layers,
                discriminator_width,
                discriminator_lr,
                clip,
            )
        )

    def prepare(self, x: Tensor) -> None:
        """Start the pseudo-inputs from averages of training images (N, C, *S)."""
        super().prepare(x)
        if self.net.pseudo is not None:
            self.net.pseudo.start_from(x, generator("pseudo-inputs", self.seed))

    @property
    def phase(self) -> int:
        """0 while the KL's weight rises, then 1."""
        return int(self.step + 1 >= self.kl_warmup)

    def optimizer(self) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        """Adam of the autoencoder, and the discriminator's where there is one."""
        return self.with_discriminator(torch.optim.Adam(self.net.parameters(), self.lr, self.betas), self.lr)

    @property
    def last_weight(self) -> nn.Parameter:
        return self.net.decoder.layers[-1].get_parameter("weight")

    def reconstruction(self, x: Tensor, label: Tensor | None) -> Reconstruction:
        """(-log p(x | z) + w beta sum_j max(KL_j, free_bits)) / (C prod S), w = min(1, step / kl_warmup).

        The source averages the squared error over pixels (eq 2.20) but sums the KL (eq 2.29): reduction
        "mean" does so too, which multiplies beta by the number of pixels and collapses the posterior.
        """
        weight = min(1.0, (self.step + 1) / self.kl_warmup) if self.kl_warmup else 1.0
        beta = weight * self.beta * (self.spec.dims if self.reduction == "mean" else 1)
        group = self.training_groups(x, label)
        q = self.net.encode(x)
        z = q.draw()
        out = self.net.decode(z, group)
        loss, parts = self.bound(x, q, z, out, beta, self.free_bits)
        image = self.net.observation.mean(out)
        return Reconstruction(loss / self.spec.dims, parts, image, parts["nll"] / self.spec.dims)


def check_vamp(pseudo_inputs: int, posterior: str, free_bits: float) -> None:
    """VerisimError for settings that a VampPrior cannot have."""
    if pseudo_inputs < 1:
        raise VerisimError(
            f"pseudo_inputs={pseudo_inputs}: a VampPrior needs 1 or more. The source uses 500, the default is 100."
        )
    if posterior != "gaussian":
        raise VerisimError(
            f"posterior={posterior} with prior=vamp: a VampPrior mixes the encoder's Gaussians, and there are none. "
            f"Set posterior=gaussian, or prior=normal."
        )
    if free_bits:
        raise VerisimError(
            f"free_bits={free_bits:g} with prior=vamp: the KL to a mixture is not a sum over latents, so none of them "
            f"can be free. Set free_bits=0, or prior=normal."
        )
