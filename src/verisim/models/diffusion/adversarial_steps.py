"""Adversarial diffusion (denoising diffusion GAN): images in 2, 4 or 8 steps. Xiao 2022; spec 003, 17-D and 17-G.4.

A large step back cannot be Gaussian, so its x0 is drawn by a generator and judged by a critic:

    x~0 = G(x_i, i, z),   x^_{i-1} ~ q(x_{i-1} | x_i, x~0)
    L_D = E softplus(-D(x_{i-1}, x_i, i)) + E softplus(D(x^_{i-1}, x_i, i)) + r1/2 E ||grad_{x_{i-1}} D||^2
    L_G = E softplus(-D(x^_{i-1}, x_i, i))

With one step this is a GAN: its fake is x~0 itself. AdaDiff and SynDiff walk the same chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.diffusion.large_steps import LargeSteps
from verisim.diffusion.schedules import check_steps
from verisim.diffusion.stepping import Callback, Step, check_finite, draw_noise, noise_source
from verisim.errors import VerisimError
from verisim.models.adversarial.losses import SOFTPLUS, r1_penalty
from verisim.models.base import GenerativeModel, Loss, SamplingOptions
from verisim.models.diffusion.adversarial_nets import StepCritic, StepGenerator
from verisim.nets.unet import UNet


@dataclass(frozen=True)
class AdversarialOptions(SamplingOptions):
    """Sampling options of adversarial diffusion."""

    steps: int = 0  # levels visited, evenly spaced; 0 = all that it was trained on
    batch: int = 128  # images at a time

    def __post_init__(self) -> None:
        check_steps(self.batch)


class AdversarialSteps(GenerativeModel):
    """A generator that walks a few large steps, trained against a critic of each step.

    `net` is the generator. Trains with manual optimisation, as DCGAN: a trainer's own clipping does not apply
    (use `clip`). Both players of a batch see the same fakes. Raises VerisimError on bad settings.
    """

    family = "gan"
    Options = AdversarialOptions
    options: AdversarialOptions
    net: StepGenerator

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        steps: int = 4,  # n of the chain
        beta_min: float = 0.1,  # its noise
        beta_max: float = 20.0,
        latent: int = 100,  # length of z
        style: int = 256,  # width of its perceptron
        style_layers: int = 4,
        channels: tuple[int, ...] = (64, 64, 128, 128),  # generator: width per level, finest first
        blocks: int = 2,  # generator: residual blocks per level
        attention: tuple[bool, ...] = (),  # generator: self-attention per level; () = the coarsest only
        head_channels: int = 32,  # channels per attention head
        dropout: float = 0.0,  # generator
        checkpointing: bool = False,  # recompute in the backward pass: less memory, a third slower
        critic_channels: tuple[int, ...] = (64, 128, 256, 256),  # at entry and after each halving
        r1: float = 1.0,  # gamma of the R1 penalty; 0 = off
        r1_interval: int = 10,  # steps between two penalties; each then weighs as many times more
        lr: float = 1.6e-4,  # Adam learning rate of G
        critic_lr: float = 1.0e-4,  # and of D
        betas: tuple[float, float] = (0.5, 0.9),  # Adam, both
        last_lr: float = 0.0625,  # learning rate at the end of half a cosine, as a share; 1 = constant
        clip: float = 0.0,  # largest gradient norm per network; 0 = no clipping
    ) -> None:
        super().__init__(spec, num_classes)
        self.automatic_optimization = False
        self.chain = LargeSteps(check_steps(steps), beta_min, beta_max)
        unet = UNet(
            spatial_dims=spec.spatial_dims,
            in_channels=spec.channels,
            out_channels=spec.channels,
            channels=tuple(channels),
            blocks=blocks,
            attention=tuple(attention) or None,
            head_channels=head_channels,
            num_classes=num_classes,
            dropout=dropout,
            embedding="sinusoidal",
            checkpointing=checkpointing,
            vector=style,
        )
        self.net = StepGenerator(unet, latent, style, style_layers)
        self.critic = StepCritic(
            spec.spatial_dims, spec.channels, spec.size, tuple(critic_channels), num_classes=num_classes
        )
        self.latent = latent
        self.r1, self.r1_interval = r1, r1_interval
        self.lr, self.critic_lr, self.betas, self.last_lr = lr, critic_lr, betas, last_lr
        self.clip = clip
        if r1 < 0 or r1_interval < 1 or not 0 < last_lr <= 1:
            raise VerisimError(
                f"r1 = {r1:g}, r1_interval = {r1_interval}, last_lr = {last_lr:g}: r1 must be 0 or more, r1_interval "
                f"1 or more and last_lr in (0, 1]."
            )

    # --- training ---------------------------------------------------------------------------------

    def optimizer(self) -> list[torch.optim.Optimizer]:
        """[Adam of G, Adam of D]."""
        return [
            torch.optim.Adam(self.net.parameters(), self.lr, self.betas),
            torch.optim.Adam(self.critic.parameters(), self.critic_lr, self.betas),
        ]

    def lr_scale(self, step: int, total: int | None) -> float:
        """Half a cosine from 1 to last_lr, if the length of the run is known."""
        if total is None:
            return 1.0
        return self.last_lr + (1 - self.last_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One step of D on real and fake steps, then one of G on the same fakes."""
        x = batch["image"]  # (B, C, *S)
        label = batch["label"] if self.num_classes else None  # (B,)
        optimizer_g, optimizer_d = self.optimizers()  # type: ignore[attr-defined]
        before, after, level = self.draw_pair(x)
        fake = self.draw_fake(after, level, label)
        loss_d, parts = self.critic_loss(before, fake.detach(), after, level, label)
        self.descend(loss_d, [optimizer_d], self.clip)
        self.critic.requires_grad_(False)
        loss_g = self.generator_loss(fake, after, level, label)
        self.descend(loss_g, [optimizer_g], self.clip)
        self.critic.requires_grad_(True)
        self.log_parts({"d_loss": loss_d, "g_loss": loss_g, **parts})

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Both losses of a step at once, for measuring what it needs."""
        label = label if self.num_classes else None
        before, after, level = self.draw_pair(x)
        fake = self.draw_fake(after, level, label)
        critic = self.critic_loss(before, fake.detach(), after, level, label)[0]
        return critic.mean() + self.generator_loss(fake, after, level, label).mean()

    def draw_pair(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_{i-1} and x_i (B, C, *S) of images x, and the levels i (B,), uniform over 1...n."""
        level = torch.randint(1, self.chain.n + 1, (len(x),)).to(x.device)
        before = self.chain.noised(x, level - 1, torch.randn_like(x))
        return before, self.chain.stepped(before, level, torch.randn_like(x)), level

    def draw_fake(self, after: Tensor, level: Tensor, label: Tensor | None) -> Tensor:
        """x^_{i-1} (B, C, *S) of x_i at levels i (B,)."""
        z = torch.randn(len(after), self.latent, device=after.device)
        x0 = self.net(after, self.chain.told(level), z, label)
        return self.chain.posterior(after, x0, level, level - 1, torch.randn_like(after))

    def critic_loss(
        self, before: Tensor, fake: Tensor, after: Tensor, level: Tensor, label: Tensor | None
    ) -> Loss:
        """L_D (B,), with the R1 penalty at every r1_interval-th step."""
        penalise = self.r1 > 0 and self.step % self.r1_interval == 0
        before = before.detach().requires_grad_(penalise)
        told = self.chain.told(level)
        real_score = self.critic(before, after, told, label)  # (B,)
        fake_score = self.critic(fake, after, told, label)  # (B,)
        loss = SOFTPLUS.discriminator(real_score, fake_score)
        parts = {"d_real": real_score, "d_fake": fake_score}
        if penalise:
            parts["r1"] = r1_penalty(real_score, before)
            loss = loss + self.r1 * self.r1_interval * parts["r1"]
        return loss, parts

    def generator_loss(self, fake: Tensor, after: Tensor, level: Tensor, label: Tensor | None) -> Tensor:
        """L_G (B,)."""
        return SOFTPLUS.generator(self.critic(fake, after, self.chain.told(level), label))

    # --- use --------------------------------------------------------------------------------------

    def configure_sampling(self, **options: Any) -> None:
        """Set sampling options by name. VerisimError for more steps than the model has levels."""
        before = self.options
        super().configure_sampling(**options)
        try:
            self.chain.levels(self.options.steps)
        except VerisimError:
            self.options = before
            raise

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n images (n, C, *S) float32 in [-1, 1]; a conditional model asked for no class draws classes uniformly.

        `callback` gets a verisim.diffusion.stepping.Step after every draw; its sigma is sqrt((1 - a) / a), a = alpha_bar.
        """
        if n < 1:
            raise VerisimError(f"{n} images asked; at least 1 is needed.")
        label = self.check_condition(n, condition)
        generator = noise_source(generator, torch.empty(0, device=self.device))
        if self.num_classes and label is None:
            label = torch.randint(self.num_classes, (n,), generator=generator, device=generator.device)
            label = label.to(self.device)
        net, images = self.sampling_net, []
        was_training = net.training
        net.eval()
        for rows in torch.arange(n).split(self.options.batch):
            part = None if label is None else label[rows.to(label.device)]
            x = draw_noise(torch.empty(len(rows), *self.spec.shape, device=self.device), generator)
            images.append(self._walk(net, x, part, generator, callback).clamp(-1, 1))
        net.train(was_training)
        return torch.cat(images)

    def _walk(
        self,
        net: nn.Module,
        x: Tensor,
        label: Tensor | None,
        generator: torch.Generator,
        callback: Callback | None,
    ) -> Tensor:
        bar = self.chain.alpha_bar

        def draw_x0(x: Tensor, level: Tensor) -> Tensor:
            z = draw_noise(x.new_empty(len(x), self.latent), generator)
            at = bar[int(level[0])]
            return check_finite(net(x, self.chain.told(level), z, label), float(((1 - at) / at).sqrt()))

        def seen(i: int, level: int, x: Tensor, x0: Tensor) -> None:
            assert callback is not None
            callback(Step(i, float(((1 - bar[level]) / bar[level]).sqrt()), x, x0))

        return self.chain.walk(draw_x0, x, self.options.steps, generator, seen if callback else None)
