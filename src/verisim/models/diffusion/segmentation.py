"""Segmentation by denoising diffusion: sample masks, given an image. Source 002, sections C to H (PatchDDM).

    q:       x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps        x_0: the mask; the image b is never noised
    loss:    mean (eps - F([b, CE, x_t], t))^2                     CE: coordinate ramps -1...1 over the whole image
    sample:  x_T ~ N(0, I); D = clip((x_t - sqrt(1 - abar_t) F) / sqrt(abar_t), -1, 1); DDIM
    answer:  mean and variance of several samples; foreground where the mean is above 1/2

One network, one loss, one sampler; the systems differ in what a training step sees:

    train_on "patch"   random crops that carry their coordinates; inference on the whole image at once (PatchDDM)
    train_on "full"    whole images (FullRes)
    train_on "half"    whole images at half resolution; masks are brought back by interpolation (HalfRes)

The source prints the noise schedule upside down; it rises here, from beta 1e-4 to 0.02.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from verisim.data.patches import (
    Halving,
    Start,
    check_patch,
    coordinates,
    crop_starts,
    crops,
    halved,
    restored,
)
from verisim.data.spec import ImageSpec
from verisim.diffusion.parametrisation import Parametrisation
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import check_sigmas, check_steps, vp_linear_table
from verisim.diffusion.stepping import draw_noise
from verisim.errors import VerisimError, pick
from verisim.models.base import Loss, SamplingOptions
from verisim.models.diffusion.backbones import cropped, padded
from verisim.models.segmentation.base import Prediction, SegmentationModel
from verisim.nets.guided_unet import SOURCE, GuidedUNet, Skip
from verisim.seeding import generator


@dataclass(frozen=True)
class SegmentationOptions(SamplingOptions):
    """How masks are sampled."""

    steps: int = 20  # evaluations per sample, 1 to 1000; below about 15 only ensembles are any good
    ensemble: int = 5  # samples per image
    sampler: str = "ddim"  # key of verisim.diffusion.samplers.SAMPLERS; ddpm = ancestral
    batch: int = 8  # images denoised at a time

    def __post_init__(self) -> None:
        pick(SAMPLERS, self.sampler, "sampler")
        for name in ("steps", "ensemble", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise VerisimError(f"{name} = {value!r}: it must be a whole number of at least 1.")
        if self.steps > 1000:
            raise VerisimError(f"steps = {self.steps}: the chain has 1000 steps, so 1 to 1000 are possible.")


class DiffusionSegmenter(SegmentationModel):
    """Samples masks of images by diffusion. Role: Segmenter. Raises VerisimError on bad settings."""

    family = "diffusion segmentation"
    Options = SegmentationOptions
    options: SegmentationOptions

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        train_on: Literal["patch", "full", "half"] = "patch",  # what a training step sees
        patch: int = 128,  # side of the crops, pixels; a multiple of 2 per level
        crop: Start = "trapezoid",  # where crops begin: trapezoid | thesis | uniform
        coordinates: bool = True,  # ramps over the whole image as further channels
        halving: Halving = "stride",  # half: every second pixel, or means of two
        label_low: float = 0.0,  # value of background in x_0; foreground is 1. -1 is the harder signal
        channels: tuple[int, ...] = SOURCE,  # width per level, finest first, multiples of the first
        blocks: int = 2,  # residual blocks per level on the way down; one more on the way up
        skip: Skip = "average",  # average | concat | root | sum; see verisim.nets.guided_unet
        attention: tuple[bool, ...] = (),  # self-attention per level; () = nowhere
        groups: int = 0,  # of every norm; 0 = channels[0], the source's. A few let small images keep their mean
        dropout: float = 0.0,  # probability inside the residual blocks
        checkpointing: bool = False,  # recompute in the backward pass: less memory, a third slower
        lr: float = 1e-5,  # AdamW learning rate
        weight_decay: float = 0.0,  # AdamW's own default is 0.01; the public code sets 0
        cosine_decay: bool = False,  # learning rate falls to 0 along half a cosine over the run
    ) -> None:
        super().__init__(spec, num_classes)
        if train_on not in ("patch", "full", "half"):
            raise VerisimError(f"train_on = '{train_on}'; it must be patch, full or half.")
        if label_low not in (0.0, -1.0):
            raise VerisimError(f"label_low = {label_low:g}; background is 0 or -1.")
        self.train_on, self.patch, self.crop, self.halving = train_on, patch, crop, halving
        self.with_coordinates, self.label_low = coordinates, label_low
        self.lr, self.weight_decay, self.cosine_decay = lr, weight_decay, cosine_decay
        self.table = vp_linear_table()  # sigma of steps 0...999, (1000,) float64
        self.parametrisation = Parametrisation("epsilon", table=self.table)
        self.net = GuidedUNet(
            spatial_dims=spec.spatial_dims,
            in_channels=spec.channels + spec.spatial_dims * coordinates + 1,
            channels=tuple(channels),
            blocks=blocks,
            skip=skip,
            attention=tuple(attention),
            groups=groups,
            dropout=dropout,
            checkpointing=checkpointing,
        )
        self.stride = self.net.stride
        if train_on == "patch":
            check_patch(spec.size, patch)
            if patch % self.stride:
                raise VerisimError(
                    f"A patch of {patch} pixels cannot be halved {len(channels) - 1} times. Choose --model.patch "
                    f"a multiple of {self.stride}, or fewer levels (shorter channels)."
                )

    # --- training ---------------------------------------------------------------------------------

    def mask_loss(self, x: Tensor, mask: Tensor) -> Loss:
        """Mean squared error of the noise (B,), images (B, C, *S) in [-1, 1], masks (B, 1, *S) 0 or 1."""
        return self._noise_loss(*self.training_view(x, mask)), {}

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        """The loss with bright pixels in place of masks; of a patch in the middle where patches are trained on."""
        return self._noise_loss(*self._trial_view(x)).mean()

    def _trial_view(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What training_view gives, at no drawn place, so that memory can be counted unseen."""
        mask = (x[:, :1] > 0).float()
        if self.train_on != "patch":
            return self.training_view(x, mask)
        b = self.condition(x)
        for axis, n in enumerate(x.shape[2:], start=2):
            b, mask = (t.narrow(axis, (n - self.patch) // 2, self.patch) for t in (b, mask))
        return b.contiguous(), mask.contiguous()  # copies, as crops are: a view would keep the whole volume

    def _noise_loss(self, b: Tensor, x0: Tensor) -> Tensor:
        """Mean squared error of the noise (B,), given the condition [b, CE] and masks of 0 and 1."""
        x0 = x0 * (1 - self.label_low) + self.label_low
        n = len(x0)
        t = (
            1000 * ((torch.arange(n) + torch.rand(n, dtype=torch.float64)) / n)
        ).long()  # uniform, stratified
        sigma = self.table[t.clamp(max=999)].to(x0.device)

        def network(x_t: Tensor, step: Tensor, label: Tensor | None) -> Tensor:
            return self._evaluate(self.net, torch.cat([b, x_t], 1), step)

        return self.parametrisation.loss(network, x0, torch.randn_like(x0), sigma)

    def training_view(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The network's condition [b, CE] and the mask that a training step sees."""
        b = self.condition(x)
        if self.train_on == "patch":
            starts = crop_starts(x.shape[2:], self.patch, len(x), self.crop)
            side = (self.patch,) * self.spec.spatial_dims
            return crops(b, starts, side), crops(mask, starts, side)
        if self.train_on == "half":
            return halved(b, self.halving), (halved(mask, self.halving) > 0.5).float()
        return b, mask

    def condition(self, x: Tensor) -> Tensor:
        """[b, CE]: images (B, C, *S) and, if so set, their coordinates, (B, C + d, *S)."""
        if not self.with_coordinates:
            return x
        ramps = coordinates(tuple(x.shape[2:])).to(x)
        return torch.cat([x, ramps.expand(len(x), *ramps.shape)], dim=1)

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the network."""
        return torch.optim.AdamW(self.net.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def lr_scale(self, step: int, total: int | None) -> float:
        """1, or half a cosine to 0 where so set and the length of the run is known."""
        return 1.0 if not self.cosine_decay or not total else 0.5 * (1 + math.cos(math.pi * step / total))

    # --- sampling ---------------------------------------------------------------------------------

    def predict(self, x: Tensor, seed: int | Sequence[int] = 0) -> Prediction:
        """Mean and variance over the ensemble of masks of images (B, C, *S), of any size S; seeds as in `members`."""
        mean, square = torch.zeros(1), torch.zeros(1)
        n = self.options.ensemble
        for p in self.members(x, n, seed):
            mean, square = mean.to(p) + p / n, square.to(p) + p.square() / n
        return Prediction(mean, (square - mean.square()).clamp_(min=0.0), n)

    def members(self, x: Tensor, n: int, seed: int | Sequence[int] = 0) -> Iterator[Tensor]:
        """n samples of the foreground, (B, 1, *S) in [0, 1] each. The k-th is the same whatever n is.

        seed: one for each image, or one for all, which then share the noise x_T of a sample. With DDIM an image's
        answer depends on its seed alone, not on what else is in a batch.
        """
        self.check_images(x)
        seeds = [seed] * len(x) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(x):
            raise VerisimError(f"{len(seeds)} seeds for {len(x)} images; give one for each, or one for all.")
        step = self.options.batch
        for k in range(n):
            parts = [
                self._draw(x[i : i + step].to(self.device), seeds[i : i + step], k)
                for i in range(0, len(x), step)
            ]
            yield torch.cat(parts)

    @torch.no_grad()
    def _draw(self, x: Tensor, seeds: Sequence[int], k: int) -> Tensor:
        """The k-th sample of the foreground of images (B, C, *S), (B, 1, *S) in [0, 1]."""
        half = self.train_on == "half"
        b = self.condition(x)
        b = halved(b, self.halving) if half else b
        sigmas = sampling_levels(self.table, self.options.steps)
        empty = torch.empty(1, 1, *b.shape[2:], device=b.device)
        sources = [generator("segment", s, k) for s in seeds]
        noise = float(sigmas[0]) * torch.cat([draw_noise(empty, rng) for rng in sources])
        net = self.sampling_net
        was_training = net.training
        net.eval()
        try:
            x0 = SAMPLERS[self.options.sampler].run(
                lambda y, sigma: self.denoise(y, sigma, b), noise, sigmas, generator=sources[0]
            )
        finally:
            net.train(was_training)
        p = ((x0 - self.label_low) / (1 - self.label_low)).clamp(0, 1)
        return restored(p, tuple(x.shape[2:]), self.halving) if half else p

    def denoise(self, x: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """E[x_0 | x_0 + sigma eps = x], clipped to [-1, 1]; x (B, 1, *S), sigma (B,), condition [b, CE]."""

        def network(x_t: Tensor, step: Tensor, label: Tensor | None) -> Tensor:
            return self._evaluate(self.sampling_net, torch.cat([condition, x_t], 1), step)

        return self.parametrisation.denoise(network, x, sigma).clamp(-1, 1)

    def _evaluate(self, net: torch.nn.Module, x: Tensor, step: Tensor) -> Tensor:
        """net on images of any size: padded to its stride, cropped back."""
        return cropped(net(padded(x, self.stride), step), x.shape[2:])


def sampling_levels(table: Tensor, n: int) -> Tensor:
    """Levels of n steps round(linspace(T - 1, 0, n)) of an increasing table (T,), then 0; (n + 1,) float64.

    Section I of source 002. Its last step stays at step 0's level, sigma 0.01; ours goes on to 0.
    """
    check_steps(n)
    last = len(table) - 1
    t = [round(last * (1 - k / (n - 1))) for k in range(n)] if n > 1 else [last]
    return check_sigmas(torch.cat([table[t], table.new_zeros(1)]))
