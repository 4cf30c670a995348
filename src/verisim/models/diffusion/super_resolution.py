"""Super-resolution by diffusion: SR3 (Saharia 2021) with the conditioning augmentation of cascades (Ho 2021).

The low-resolution image, enlarged, goes into the network beside the noisy one. In training it gets noise of a
random level, and a channel says which: then a stage can work on the output of another model, whose faults that
noise hides. Spec 000, C5e.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import ImageSpec
from verisim.diffusion.guidance import Null
from verisim.diffusion.stepping import Callback, draw_noise, noise_source
from verisim.errors import VerisimError
from verisim.models.base import Loss
from verisim.models.diffusion.backbones import on_any_size
from verisim.models.diffusion.denoising import DenoisingDiffusion
from verisim.models.diffusion.options import DiffusionOptions
from verisim.models.diffusion.training_noise import Noise


@dataclass(frozen=True)
class SuperResolutionOptions(DiffusionOptions):
    """How a super-resolution model samples."""

    augmentation: float = 0.0  # noise added to the low image, up to the model's own; 0.1 suits generated ones
    consistent: bool = False  # make the result average down to the low image exactly

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.augmentation <= 1:
            raise VerisimError(f"augmentation = {self.augmentation:g}: noise of 0 (none) to 1 is possible.")


class SuperResolution(DenoisingDiffusion):
    """Images `factor` times as large as those given. Without one it draws freely, as it learned to for guidance."""

    Options = SuperResolutionOptions
    options: SuperResolutionOptions

    def __init__(
        self,
        spec: ImageSpec,  # of the large images
        num_classes: int = 0,  # must be 0: the condition is an image
        *,
        factor: int = 4,  # large side / small side; divides every side
        augmentation: float = 0.3,  # largest standard deviation of the noise on the low image in training
        low_dropout: float = 0.1,  # share of low images left out in training, for guidance
        parametrisation: Literal["edm", "epsilon", "x0", "v", "flow"] = "edm",
        sigma_data: float = 0.5,  # standard deviation of the images in [-1, 1]
        noise: Noise = "auto",  # of training; vp_...: steps of that grid
        p_mean: float = -1.2,  # lognormal: mean of ln sigma
        p_std: float = 1.2,  # lognormal: its standard deviation
        channels: tuple[int, ...] = (64, 128, 128),  # U-Net width per level, finest first
        blocks: int = 2,  # residual blocks per level
        attention: tuple[bool, ...] = (),  # self-attention per level; () = the coarsest only
        head_channels: int = 32,  # channels per attention head
        skip: Literal["concat", "average"] = "concat",  # "average": fewer operations, less memory
        patch: int = 1,  # side of the pixel patch folded into channels at entry
        checkpointing: bool = False,  # recompute in the backward pass: less memory, a third slower
        dropout: float = 0.0,  # probability inside the residual blocks
        lr: float = 2e-4,  # Adam learning rate
        betas: tuple[float, float] = (0.9, 0.999),  # Adam
        warmup: int = 0,  # steps of linear learning-rate warm-up
        cosine_decay: bool = False,  # learning rate falls to 0 along half a cosine over the run
        sampler: str = "auto",  # default sampling options; "auto" and 0 = by parametrisation
        schedule: str = "auto",
        steps: int = 0,
        clip: Literal["auto", "on", "off"] = "auto",  # clip estimates of x0; "auto" = for epsilon
        bf16_sampling: bool = False,  # network in bfloat16 when sampling; the state stays float32
        allow_small_features: bool = False,  # permit feature maps below 4 pixels (for demonstrations)
    ) -> None:
        if num_classes:
            raise VerisimError("A super-resolution model takes an image, no class. Leave out --data.label.")
        check_factor(spec.size, factor)
        if not 0 <= augmentation <= 1:
            raise VerisimError(
                f"augmentation = {augmentation:g}: noise of 0 (none) to 1 is possible, e.g. 0.3."
            )
        super().__init__(
            spec,
            0,
            parametrisation=parametrisation,
            sigma_data=sigma_data,
            noise=noise,
            p_mean=p_mean,
            p_std=p_std,
            channels=channels,
            blocks=blocks,
            attention=attention,
            head_channels=head_channels,
            skip=skip,
            patch=patch,
            checkpointing=checkpointing,
            dropout=dropout,
            label_dropout=low_dropout,
            lr=lr,
            betas=betas,
            warmup=warmup,
            cosine_decay=cosine_decay,
            sampler=sampler,
            schedule=schedule,
            steps=steps,
            clip=clip,
            bf16_sampling=bf16_sampling,
            allow_small_features=allow_small_features,
        )
        self.factor, self.augmentation = factor, augmentation
        known = {f.name: getattr(self.options, f.name) for f in fields(DiffusionOptions)}
        self.options = SuperResolutionOptions(**known)

    # --- conditions: (B, C + 1, *S), the enlarged low image and a channel with the level of its noise -----------

    def extra_channels(self, spec: ImageSpec) -> int:
        """The enlarged low image and the level of its noise."""
        return spec.channels + 1

    @property
    def low_shape(self) -> tuple[int, ...]:
        """(C, *S) of the images to enlarge."""
        return (self.spec.channels, *(s // self.factor for s in self.spec.size))

    @property
    def null_condition(self) -> Null:
        """No image: zeros, and a level that no image has."""
        null = torch.zeros(1, self.spec.channels + 1, *[1] * self.spec.spatial_dims)
        null[:, -1] = -1
        return null

    def condition_from(self, low: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """(B, C + 1, *S) of low images (B, C, *S / factor), level (B,) of their noise (B, C, *S)."""
        per_image = level.view(-1, *[1] * (low.ndim - 1)).to(low)
        large = enlarged(low, self.factor) + per_image * noise
        return torch.cat([large, per_image.expand(-1, 1, *large.shape[2:])], 1)

    def check_condition(self, n: int, condition: Tensor | None) -> Tensor | None:
        """A condition for n images, from low images or as condition_from gave it; VerisimError otherwise."""
        if condition is None:
            return None
        shape = tuple(condition.shape[1:])
        if not condition.is_floating_point() or shape not in (
            self.low_shape,
            (self.spec.channels + 1, *self.spec.size),
        ):
            raise VerisimError(
                f"This model enlarges images of shape {self.low_shape} (channels, *size) {self.factor} times, in "
                f"[-1, 1], and takes no classes (it was trained without classes); it got shape {shape}."
            )
        condition = condition.to(self.device)
        if shape == self.low_shape:
            self.check_low(condition)
            zero = condition.new_zeros(len(condition))
            condition = self.condition_from(condition, zero, condition.new_zeros(()))
        return condition.expand(n, *condition.shape[1:])

    def check_low(self, low: Tensor) -> None:
        """RangeError unless these are low images in [-1, 1]."""
        ImageSpec(self.low_shape[1:], self.spec.channels).check(low, "images to enlarge")

    # --- training and sampling ------------------------------------------------------------------------------------

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Weighted denoising error (B,) of large images x (B, C, *S), given what they average down to."""
        low = averaged(x, self.factor)
        level = self.augmentation * torch.rand(len(x))
        return super().training_loss(x, self.condition_from(low, level, torch.randn_like(x)))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1]; condition: low images (n, C, *S / factor) in [-1, 1], or None = freely."""
        generator = noise_source(generator, torch.empty(0, device=self.device))
        low = condition if condition is not None and tuple(condition.shape[1:]) == self.low_shape else None
        strength = self.options.augmentation
        if low is not None and strength:
            low = low.to(self.device).float()
            self.check_low(low)
            noise = draw_noise(enlarged(low, self.factor), generator)
            condition = self.condition_from(low, torch.full((len(low),), strength), noise)
        x = super().sample(n, condition, generator, callback)
        return projected(x, low.to(x), self.factor) if low is not None and self.options.consistent else x

    def configure_sampling(self, **options: object) -> None:
        """As for any diffusion model; VerisimError for more noise on the low image than was trained with."""
        asked = options.get("augmentation")
        if isinstance(asked, float | int) and asked > self.augmentation:
            raise VerisimError(
                f"augmentation = {asked:g}: this model was trained with noise of up to {self.augmentation:g} on the "
                f"low image."
            )
        super().configure_sampling(**options)

    def _network(self, net, precision, x, c_noise, label):
        """net on the noisy image and its condition side by side."""
        null = self.null_condition
        assert isinstance(null, Tensor)
        condition = null.to(x).expand(len(x), -1, *x.shape[2:]) if label is None else label.to(x)
        return on_any_size(net, self.stride, precision, torch.cat([x, condition], 1), c_noise, None)

    def _drop_labels(self, label: Tensor | None) -> Tensor | None:
        """Conditions with a share replaced by none."""
        if label is None:
            return None
        null = self.null_condition
        assert isinstance(null, Tensor)
        drop = torch.rand(len(label)).to(label.device) < self.label_dropout
        return torch.where(drop.view(-1, *[1] * (label.ndim - 1)), null.to(label), label)


def averaged(x: Tensor, factor: int) -> Tensor:
    """x (B, C, *S) -> (B, C, *S / factor): means over blocks of factor pixels a side."""
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[x.ndim - 2]
    return pool(x.float(), factor).to(x.dtype)


def enlarged(x: Tensor, factor: int) -> Tensor:
    """x (B, C, *S) -> (B, C, *S factor): bicubic in 2D, trilinear in 3D, within [-1, 1]."""
    scale = partial(F.interpolate, x, scale_factor=float(factor), align_corners=False)
    return scale(mode="bicubic" if x.ndim == 4 else "trilinear").clamp(-1, 1)


def projected(x: Tensor, low: Tensor, factor: int) -> Tensor:
    """x moved so that it averages down to `low` exactly, within [-1, 1].

    A block whose mean m must rise to l goes towards white, x + a (1 - x) with a = (l - m) / (1 - m); one that must
    fall goes towards black in the same way. a is in [0, 1], so nothing has to be clipped.
    """
    mean = averaged(x, factor)
    up = ((low - mean) / (1 - mean).clamp(min=1e-6)).clamp(0, 1)
    down = ((mean - low) / (1 + mean).clamp(min=1e-6)).clamp(0, 1)
    a, b = (F.interpolate(t, scale_factor=float(factor), mode="nearest") for t in (up, down))
    return x + a * (1 - x) - b * (1 + x)


def check_factor(size: tuple[int, ...], factor: int) -> None:
    """VerisimError unless the factor is 2 or more and divides every side."""
    if factor < 2:
        raise VerisimError(f"factor = {factor}: super-resolution enlarges 2 times or more, e.g. 4.")
    if any(s % factor for s in size):
        near = "x".join(str(max(factor, s // factor * factor)) for s in size)
        raise VerisimError(
            f"factor = {factor}: images of {'x'.join(map(str, size))} cannot be made from ones that are {factor} times "
            f"smaller. Every side must be a multiple of it, e.g. {near}."
        )
