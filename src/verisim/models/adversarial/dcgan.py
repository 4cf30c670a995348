"""DCGAN: the source's literal form and the corrected one, by settings (source 004 section 3 G).

Literal (X-G0): BCE on a sigmoid, batch norm in both networks, a diversity term without bound. It
collapses at 128 px. Corrected (X-G-fix, the defaults): logits, R1 (or spectral norm) instead of batch
norm in D, minibatch standard deviation instead of the diversity term, augmentation by shifts and never
by flips, and D twice as fast as G. WGAN-GP, SN-GAN and the fully connected GAN (X-B1) by settings too.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.adversarial.augment import augment as augmented
from verisim.models.adversarial.augment import parse_policy
from verisim.models.adversarial.dense import DenseDiscriminator, DenseGenerator
from verisim.models.adversarial.losses import DIVERSITY, LOSSES, gradient_penalty, r1_penalty
from verisim.models.adversarial.networks import (
    Discriminator,
    Generator,
    check_size,
    hold_buffers,
    init_weights,
    normalise_spectrally,
)
from verisim.models.base import GenerativeModel, Loss, SamplingOptions

CHUNK = 64  # images per forward pass when sampling


@dataclass(frozen=True)
class DCGANOptions(SamplingOptions):
    """Sampling options of a DCGAN."""

    temperature: float = 1.0  # standard deviation of z; below 1: more typical, less diverse


class DCGAN(GenerativeModel):
    """GAN, by default deep and convolutional on square or cubic images with a side of 16, 32, 64, 128 or 256 pixels.

    `net` is the generator. Trains with manual optimisation: a trainer's own gradient clipping and
    accumulation do not apply (use `clip`), and each batch counts as two optimiser steps in Lightning's
    `global_step`. Fakes take the classes of the real batch. Raises VerisimError for other sizes (dense
    networks take any).
    """

    family = "gan"
    Options = DCGANOptions
    options: DCGANOptions
    net: Generator | DenseGenerator
    skips_parameters = True  # each step trains one network and leaves the other's alone

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        latent: int = 100,  # length of z
        nf: int = 64,  # channels of the stage next to the image, in both networks
        max_width: int = 512,  # upper bound of channels (the source has none: 4096)
        slope: float = 0.2,  # of LeakyReLU in both networks; 0 = ReLU
        loss: Literal[
            "softplus", "hinge", "bce", "wasserstein"
        ] = "softplus",  # bce = sigmoid + BCELoss (source)
        discriminator_norm: Literal["none", "batch"] = "none",  # batch norm in D (source)
        spectral_norm: bool = False,  # spectral normalisation of D
        minibatch_std: bool = True,  # D sees how much the images of a batch differ
        r1: float = 1.0,  # gamma of the R1 penalty; 0 = off
        r1_interval: int = 16,  # steps between two R1 penalties; each then weighs as many times more
        diversity: Literal["none", "unbounded", "hinged"] = "none",  # unbounded = source
        diversity_weight: float = 0.5,  # lambda of the diversity term
        augment: str = "translation",  # what D sees, comma-separated
        lr: float = 2e-4,  # Adam learning rate of G
        lr_ratio: float = 2.0,  # learning rate of D over that of G
        beta1: float = 0.5,  # Adam, both
        beta2: float = 0.999,  # Adam, both
        init_std: float = 0.02,  # standard deviation of initial weights
        clip: float = 0.0,  # largest gradient norm per network; 0 = no clipping
        hold_statistics: bool = True,  # G's step leaves D's buffers alone (False: as in the source)
        gradient_penalty: float = 0.0,  # lambda of the penalty between real and fake (WGAN-GP: 10); 0 = off
        critic_steps: int = 1,  # batches that train D for each one that trains G too (WGAN-GP: 5)
        network: Literal["convolutional", "dense"] = "convolutional",  # dense = fully connected, both
        hidden: int = 512,  # units of each hidden layer of dense networks
    ) -> None:
        super().__init__(spec, num_classes)
        self.automatic_optimization = False
        if critic_steps < 1:
            raise VerisimError(f"--model.critic_steps is {critic_steps}; it must be 1 or more.")
        if loss == "wasserstein" and not (gradient_penalty or spectral_norm):
            raise VerisimError(
                "The Wasserstein loss has no lower bound unless D's slope has an upper one: set "
                "--model.gradient_penalty 10 or --model.spectral_norm true."
            )
        if (
            gradient_penalty
            and network == "convolutional"
            and (minibatch_std or discriminator_norm == "batch")
        ):
            raise VerisimError(
                "A gradient penalty asks for each image's own gradient, but this discriminator looks at whole "
                "batches: set --model.minibatch_std false and --model.discriminator_norm none."
            )
        if network == "dense":
            self.net = DenseGenerator(spec, latent, hidden, slope, num_classes)
            self.discriminator: Discriminator | DenseDiscriminator = DenseDiscriminator(
                spec, hidden, slope, num_classes
            )
        else:
            side, dims = check_size(spec.size), spec.spatial_dims
            self.net = Generator(side, dims, spec.channels, latent, nf, max_width, slope, num_classes)
            self.discriminator = Discriminator(
                side,
                dims,
                spec.channels,
                nf,
                max_width,
                slope,
                discriminator_norm == "batch",
                minibatch_std,
                num_classes,
            )
        init_weights(self.net, init_std)
        init_weights(self.discriminator, init_std)
        if spectral_norm:
            normalise_spectrally(self.discriminator)
        self.latent = latent
        self.loss = LOSSES[loss]
        self.policy = parse_policy(augment)
        self.r1, self.r1_interval = r1, r1_interval
        self.diversity = None if diversity == "none" else DIVERSITY[diversity]
        self.diversity_weight = diversity_weight
        self.lr, self.lr_ratio, self.betas = lr, lr_ratio, (beta1, beta2)
        self.clip = clip
        self.hold_statistics = hold_statistics
        self.gp, self.critic_steps = gradient_penalty, critic_steps

    # --- training ---------------------------------------------------------------------------------

    def optimizer(self) -> list[torch.optim.Optimizer]:
        """[Adam of G, Adam of D]."""
        return [
            torch.optim.Adam(self.net.parameters(), self.lr, self.betas),
            torch.optim.Adam(self.discriminator.parameters(), self.lr * self.lr_ratio, self.betas),
        ]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One step of D on real and fake images; then, at every critic_steps-th batch, one of G on the same fakes.

        G runs once, before both steps: its running statistics move once per batch.
        """
        x = batch["image"]  # (B, C, *S)
        label = batch["label"] if self.num_classes else None  # (B,)
        optimizer_g, optimizer_d = self.optimizers()  # type: ignore[attr-defined]
        turn_of_g = (self.step + 1) % self.critic_steps == 0
        with torch.set_grad_enabled(turn_of_g):
            fake = self.net(torch.randn(len(x), self.latent, device=x.device), label)
        parts = self.discriminator_step(x, fake.detach(), label, optimizer_d)
        if turn_of_g:
            parts |= self.generator_step(fake, x, label, optimizer_g)
        self.log_parts(parts)

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Both losses of a step at once, for measuring what it needs."""
        label = label if self.num_classes else None
        fake = self.net(torch.randn(len(x), self.latent, device=x.device), label)
        critic = self.discriminator_loss(x, fake.detach(), label)[0]
        return critic.mean() + self.generator_loss(fake, x, label)[0].mean()

    def discriminator_step(self, x: Tensor, fake: Tensor, label: Tensor | None, optimizer: Any) -> dict:
        """Update D alone on real x and detached fake (B, C, *S); returns the parts of its loss."""
        loss, parts = self.discriminator_loss(x, fake, label)
        self.descend(loss, [optimizer], self.clip)
        return {"d_loss": loss, **parts}

    def generator_step(self, fake: Tensor, x: Tensor, label: Tensor | None, optimizer: Any) -> dict:
        """Update G alone through fake = G(z); returns the parts of its loss.

        With hold_statistics=False, D's running statistics see this batch of fakes too, as in the source:
        they then average over one real and two fake batches per step.
        """
        self.discriminator.requires_grad_(False)
        held = hold_buffers(self.discriminator) if self.hold_statistics else nullcontext()
        with held:
            loss, parts = self.generator_loss(fake, x, label)
            self.descend(loss, [optimizer], self.clip)
        self.discriminator.requires_grad_(True)
        return {"g_loss": loss, **parts}

    def discriminator_loss(self, x: Tensor, fake: Tensor, label: Tensor | None) -> Loss:
        """Adversarial loss of D, plus gamma/2 ||grad_x D(x)||^2 at every r1_interval-th step.

        With gradient_penalty lambda also lambda (||grad D|| - 1)^2 between what D saw of real and fake images.
        """
        penalise = self.r1 > 0 and self.step % self.r1_interval == 0
        x = x.detach().requires_grad_(penalise)
        real, false = augmented(x, self.policy), augmented(fake, self.policy)
        real_score = self.discriminator(real, label)  # (B,)
        fake_score = self.discriminator(false, label)  # (B,)
        loss = self.loss.discriminator(real_score, fake_score)
        parts = {"d_real": real_score, "d_fake": fake_score}
        if penalise:
            parts["r1"] = r1_penalty(real_score, x)
            loss = loss + self.r1 * self.r1_interval * parts["r1"]
        if self.gp:
            parts["gp"] = gradient_penalty(lambda between: self.discriminator(between, label), real, false)
            loss = loss + self.gp * parts["gp"]
        return loss, parts

    def generator_loss(self, fake: Tensor, x: Tensor, label: Tensor | None) -> Loss:
        """L_G = adversarial loss of G + lambda L_div."""
        score = self.discriminator(augmented(fake, self.policy), label)  # (B,)
        loss, parts = self.loss.generator(score), {}
        if self.diversity is not None:
            parts["diversity"] = self.diversity(fake, x)
            loss = loss + self.diversity_weight * parts["diversity"]
        return loss, parts

    # --- use --------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in (-1, 1), batch norm by running statistics.

        A conditional model asked for no class draws classes uniformly.
        """
        if self.options.temperature < 0:
            raise VerisimError(
                f"temperature {self.options.temperature:g}: it is the standard deviation of z, so it must "
                f"be 0 or more. 1 is what the model was trained with."
            )
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        on = generator.device
        z = torch.randn(n, self.latent, generator=generator, device=on) * self.options.temperature
        label = self.check_condition(n, condition)
        if self.num_classes and label is None:
            label = torch.randint(self.num_classes, (n,), generator=generator, device=on)
        net = self.sampling_net
        was = net.training
        net.eval()
        images = torch.empty(n, *self.spec.shape, device=self.device)
        for i in range(0, n, CHUNK):
            part = slice(i, i + CHUNK)
            images[part] = net(
                z[part].to(self.device), None if label is None else label[part].to(self.device)
            )
        net.train(was)
        return images

    @torch.no_grad()
    def realness(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """D's logit (B,) for images x (B, C, *S) in [-1, 1], in evaluation mode; larger = more real.

        RangeError for any other range. With minibatch_std the score depends on the batch's other images.
        """
        self.spec.check(x, "images to be judged")
        was = self.discriminator.training
        self.discriminator.eval()
        score = self.discriminator(x, label)
        self.discriminator.train(was)
        return score
