"""A scan at another age by diffusion: encode into noise, decode towards an age. Spec 002, section M (baseline DDM+GG).

    encode:  x_s = D + (s / t) (x_t - D) with s > t      reverse DDIM, L steps of 1000, no noise drawn
    decode:  the same with s < t, and D - c t^2 grad_x (R(x_t) - a)^2 in place of D(x_t)

D is the denoiser and R an age regressor, both trained on noised scans; here x = x_0 + sigma eps, in which the source's
eps^ + c sqrt(1 - abar) grad (R - a)^2 reads as above. Ages are standardised by those of the training scans, so c counts
in these units (in the source's, unknown ones, c = 3e5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from verisim.data.spec import Images, ImageSpec
from verisim.diffusion.learned_variance import denoise_with_variance, hybrid_loss
from verisim.diffusion.parametrisation import Parametrisation, wide
from verisim.diffusion.schedules import vp_linear_table
from verisim.errors import VerisimError
from verisim.models.base import GenerativeModel, SamplingOptions
from verisim.nets.guided_encoder import GuidedEncoder
from verisim.nets.guided_unet import GuidedUNet


@dataclass(frozen=True)
class AgeGuidedOptions(SamplingOptions):
    """Sampling options."""

    age: float = 0.0  # age to guide samples to; 0 = none
    guidance: float = 1.0  # c
    steps: int = 50  # of the 1000, from pure noise


class Nets(nn.Module):
    """Denoiser and age regressor, with the mean and standard deviation of the ages they were trained on."""

    ages: Tensor

    def __init__(self, denoiser: GuidedUNet, regressor: GuidedEncoder) -> None:
        super().__init__()
        self.denoiser, self.regressor = denoiser, regressor
        self.register_buffer("ages", torch.tensor([35.0, 5.0]))


class AgeGuidedDiffusion(GenerativeModel):
    """Denoising diffusion with an age regressor that guides it. Defaults are the source's sizes, for 256 x 256."""

    family = "age-guided diffusion"
    Options = AgeGuidedOptions
    options: AgeGuidedOptions
    net: Nets

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        channels: tuple[int, ...] = (128, 128, 256, 256, 512, 512),  # width per level, finest first, of both
        blocks: int = 2,  # denoiser: residual blocks per level on the way down; one more on the way up
        attention: tuple[bool, ...] = (False, False, False, False, True, False),  # denoiser, per level
        depth: int = 4,  # regressor: residual blocks per level
        regressor_attention: tuple[bool, ...] = (),  # per level; () = the coarsest half
        head_channels: int = 64,  # regressor: channels per attention head
        groups: int = 32,  # of every norm
        lr: float = 1e-4,  # AdamW, both
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(spec, num_classes)
        if num_classes:
            raise VerisimError("An age-guided model knows ages, not classes: leave out --data.label.")
        levels = len(channels)
        flags = tuple(regressor_attention) or tuple(i >= levels // 2 for i in range(levels))
        denoiser = GuidedUNet(
            spec.spatial_dims,
            spec.channels,
            2 * spec.channels,
            tuple(channels),
            blocks,
            "concat",
            tuple(attention),
            middle_attention=True,
            groups=groups,
        )
        regressor = GuidedEncoder(
            spec.size, spec.channels, 1, tuple(channels), depth, flags, head_channels, groups
        )
        self.net = Nets(denoiser, regressor)
        self.table = vp_linear_table()  # (T,) sigma of step 0...T - 1
        self.parametrisation = Parametrisation("epsilon", table=self.table)
        self.lr, self.weight_decay = lr, weight_decay

    # --- training ---------------------------------------------------------------------------------

    def meet(self, images: Images) -> None:
        """Standardise ages by those of the training images. VerisimError if they have none."""
        if images.ages is None:
            raise VerisimError(
                "An age-guided model needs the age of each image: name the column of manifest.csv with --data.age."
            )
        spread = images.ages.float().std(correction=0).clamp(min=1e-3)
        self.net.ages.copy_(torch.stack([images.ages.float().mean(), spread]))

    def optimizer(self) -> torch.optim.Optimizer:
        """One AdamW over both networks, whose losses share no parameter."""
        return torch.optim.AdamW(self.net.parameters(), self.lr, weight_decay=self.weight_decay)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        loss, parts = self.losses(batch["image"], batch["age"])
        self.log_parts({"loss": loss, **parts})
        return loss.mean() if self.is_finite(loss) else None

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        return self.losses(x, torch.full((len(x),), 35.0, device=x.device))[0].mean()

    def losses(self, x0: Tensor, ages: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Of noise and of age (B,), images (B, C, *S) in [-1, 1], ages (B,), at one random step each."""
        sigma = self.table[torch.randint(len(self.table), (len(x0),))].to(x0.device)
        eps = torch.randn_like(x0)
        noise, _ = hybrid_loss(self.parametrisation, self._network, x0, eps, sigma)
        age = (self._age(self.net, x0 + wide(sigma, x0) * eps, sigma) - self._standard(ages)).square()
        return noise + age, {"noise": noise, "age": age}

    def _standard(self, ages: Tensor) -> Tensor:
        mean, spread = self.net.ages
        return (ages - mean) / spread

    def _network(self, x: Tensor, step: Tensor, label: Tensor | None) -> Tensor:
        return self.net.denoiser(x, step)

    def _age(self, net: Nets, x: Tensor, sigma: Tensor) -> Tensor:
        """Standardised age (B,) of noised images x = x_0 + sigma eps."""
        c = self.parametrisation.coefficients(sigma)
        return net.regressor(wide(c.c_in, x) * x, c.c_noise.float())[:, 0]

    # --- use --------------------------------------------------------------------------------------

    @property
    def nets(self) -> Nets:
        """The networks to sample with."""
        net = self.sampling_net
        assert isinstance(net, Nets)
        return net

    def age_of(self, x: Tensor) -> Tensor:
        """(B,) age that the regressor sees in clean images (B, C, *S)."""
        mean, spread = self.nets.ages
        with torch.no_grad():
            return self._age(self.nets, x, self.table[:1].to(x.device).expand(len(x))) * spread + mean

    def estimate(self, x: Tensor, sigma: float, age: float | Tensor | None = None, c: float = 0.0) -> Tensor:
        """E[x_0 | x] of (B, C, *S) at a level; with an age, moved towards it by the regressor's gradient."""
        net, level = self.nets, torch.full((len(x),), sigma, device=x.device, dtype=torch.float64)
        with torch.no_grad():
            x0, _ = denoise_with_variance(
                self.parametrisation, lambda y, t, label: net.denoiser(y, t), x, level
            )
        if age is None or c == 0:
            return x0
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            want = self._standard(torch.as_tensor(age, dtype=torch.float32, device=x.device).expand(len(x)))
            error = (self._age(net, leaf, level) - want).square().sum()
            (slope,) = torch.autograd.grad(error, leaf)
        return x0 - c * sigma**2 * slope

    def at_age(
        self,
        x: Tensor,  # (B, C, *S) in [-1, 1]
        age: float | Tensor | None,  # to decode to, (B,) or one for all; None = decode without guidance
        level: int = 600,  # L: steps of the 1000 that are encoded
        c: float = 1.0,  # strength of guidance
        steps: int = 0,  # of them that are evaluated; 0 = all
    ) -> Tensor:
        """The images' subjects at another age, (B, C, *S) in [-1, 1]; no noise is drawn."""
        t = len(self.table)
        if not 1 <= level < t or steps < 0 or not math.isfinite(c) or c < 0:
            raise VerisimError(
                f"age_guided.at_age: level={level}, steps={steps}, c={c:g}; level is from 1 to {t - 1}, steps and c are 0 "
                f"or more."
            )
        self.spec.check(x, "age_guided.at_age")
        x = x.to(self.device)
        path = torch.linspace(0, level, (min(steps, level) or level) + 1).round().long()
        sigmas = [float(s) for s in self.table[path]]
        for now, then in pairwise(sigmas):  # encode
            x0 = self.estimate(x, now)
            x = x0 + (then / now) * (x - x0)
        return self._decode(x, sigmas[::-1], age, c)

    def _decode(self, x: Tensor, sigmas: list[float], age: float | Tensor | None, c: float) -> Tensor:
        """DDIM down the levels, and from the last one to 0."""
        for now, then in zip(sigmas, [*sigmas[1:], 0.0]):
            x0 = self.estimate(x, now, age, c)
            x = x0 + (then / now) * (x - x0)
        if not torch.isfinite(x).all():
            raise VerisimError(
                f"age_guided: guidance of strength {c:g} overshoots and breaks the image. Lower it."
            )
        return x.clamp(-1, 1)

    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1] by DDIM, guided to options.age if one is set."""
        self.check_condition(n, condition)
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        o, last = self.options, len(self.table) - 1
        if not 1 <= o.steps <= last:
            raise VerisimError(f"steps is {o.steps}; it must be from 1 to {last}.")
        sigmas = [float(s) for s in self.table[torch.linspace(last, 0, o.steps).round().long()]]
        noise = torch.randn(n, *self.spec.shape, generator=generator, device=generator.device)
        was = self.nets.training
        self.nets.eval()
        x = self._decode(noise.to(self.device) * sigmas[0], sigmas, o.age or None, o.guidance)
        self.nets.train(was)
        return x
