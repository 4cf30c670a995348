"""What both autoregressive models share: exact likelihood, training on it, sampling in raster order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoregressive.heads import Head, dequantise, quantise
from verisim.models.autoregressive.raster import FullForward, Stepper, raster_scan, uniforms
from verisim.models.base import GenerativeModel, Loss, SamplingOptions

CHUNK = 128  # images that are sampled side by side; bounds memory


@dataclass(frozen=True)
class AutoregressiveOptions(SamplingOptions):
    """Sampling options of autoregressive models."""

    temperature: float = 1.0  # > 0; below 1 narrows every pixel's distribution, 1 is the model itself
    cached: bool = True  # reuse features between pixels; False runs the whole network for each pixel


class AutoregressiveModel(GenerativeModel):
    """p(x) = prod_i p(x_i | x_<i) over grey levels in raster order; 2D, one channel.

    Images (B, 1, H, W) float32 in [-1, 1] are rounded to `levels` grey levels; likelihoods are exact and
    are those of the rounded image. Subclasses set `net` (net(input, label) -> (B, P, H, W)), `head`,
    `low` (network input of level 0) and write `cached_stepper`.
    """

    Options: ClassVar[type[SamplingOptions]] = AutoregressiveOptions
    family: ClassVar[str] = "autoregressive"
    likelihood_is_bound = False
    options: AutoregressiveOptions

    def __init__(self, spec: ImageSpec, num_classes: int, head: Head, low: float) -> None:
        super().__init__(spec, num_classes)
        if spec.spatial_dims != 2 or spec.channels != 1:
            raise VerisimError(
                f"{type(self).__name__} is for 2D images of one channel; these have {spec.spatial_dims} "
                f"dimensions and {spec.channels} channels. Convert them to grey slices, or use the "
                "'diffusion' model."
            )
        self.head = head
        self.low = low  # the network sees level 0 as `low` and the last level as 1

    def cached_stepper(self, net: nn.Module, n: int, label: Tensor | None) -> Stepper:
        """The fast stepper over `net` for n images with classes label (n,)."""
        raise VerisimError(f"{type(self).__name__} has no cached sampling; set cached=False.")

    def configure_sampling(self, **options: object) -> None:
        super().configure_sampling(**options)
        t = self.options.temperature
        if not (math.isfinite(t) and t > 0):
            raise VerisimError(
                f"Sampling temperature {t} is not possible: it must be finite and above 0. "
                "Use 1 for the model itself, 0.8 ... 0.95 for smoother images."
            )

    # --- likelihood -------------------------------------------------------------------------------

    def to_input(self, level: Tensor) -> Tensor:
        """Grey levels -> the network's input scale [low, 1]."""
        unit = (dequantise(level, self.head.levels) + 1) / 2  # [0, 1]
        return unit * (1 - self.low) + self.low

    def nll_bits(self, net: nn.Module, x: Tensor, label: Tensor | None) -> Tensor:
        """-log2 p(x | label) / dims, (B,), of images x (B, 1, H, W) in [-1, 1]."""
        level = quantise(x, self.head.levels)  # (B, 1, H, W)
        params = net(self.to_input(level), label).float()  # (B, P, H, W); float32 under autocast too
        log_p = self.head.log_prob(params.permute(0, 2, 3, 1), level[:, 0])  # (B, H, W)
        return -log_p.flatten(1).mean(1) / math.log(2)

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Exact negative log-likelihood in bits per dimension (B,); the only part is the loss itself."""
        loss = self.nll_bits(self.net, x, self.need_label(len(x), label))
        return loss, {"bits_per_dim": loss.detach()}

    def need_label(self, n: int, label: Tensor | None) -> Tensor | None:
        """The label that the network takes: none for an unconditional model, required otherwise."""
        if self.num_classes == 0:
            return None
        if label is None:
            raise VerisimError(
                f"This model has {self.num_classes} classes, but the batch carries no label. "
                "Name the column with --data.label COLUMN."
            )
        return self.check_condition(n, label)

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(B,) exact bits per dimension of x (B, 1, H, W) in [-1, 1], rounded to `levels` grey levels.

        Condition (B,) int64; None on a conditional model averages p(x | class) over equal classes.
        Nothing is random, so the generator is not used.
        """
        self.spec.check(x, "bits_per_dim")
        x = x.to(self.device)
        label = self.check_condition(len(x), condition)
        with evaluating(self.sampling_net) as net:
            if self.num_classes == 0 or label is not None:
                return self.nll_bits(net, x, label)
            every = [
                self.nll_bits(net, x, torch.full((len(x),), c, device=self.device))
                for c in range(self.num_classes)
            ]
        nats = torch.stack(every) * (self.spec.dims * math.log(2))  # (classes, B), -log p(x | c)
        log_p = torch.logsumexp(-nats.double(), 0) - math.log(self.num_classes)
        return (-log_p / (self.spec.dims * math.log(2))).float()

    # --- sampling ---------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, 1, H, W) float32 in [-1, 1]; condition (n,) classes; None draws them evenly."""
        if generator is None:
            generator = torch.Generator(device=self.device)
            generator.seed()
        label = self.check_condition(n, condition)
        if self.num_classes and label is None:
            drawn = torch.randint(self.num_classes, (n,), generator=generator, device=generator.device)
            label = drawn.to(self.device)
        size = (self.spec.size[0], self.spec.size[1])
        images = []
        with evaluating(self.sampling_net) as net:
            for start in range(0, n, CHUNK):
                m = min(CHUNK, n - start)
                part = None if label is None else label[start : start + m]
                u = uniforms(m, size, generator, self.device)
                cached = self.options.cached
                stepper = self.cached_stepper(net, m, part) if cached else FullForward(net, m, size, part)
                images.append(raster_scan(stepper, self.draw, self.to_input, u)[:, None])
        level = torch.cat(images) if images else torch.zeros(0, 1, *size, dtype=torch.long)
        return dequantise(level.to(self.device), self.head.levels)

    def draw(self, params: Tensor, u: Tensor) -> Tensor:
        """Grey levels (B,) from head parameters (B, P) and uniforms (B, 2)."""
        return self.head.draw(params.float(), u, self.options.temperature)


class evaluating:
    """`with evaluating(net)`: eval mode inside, the former mode of every submodule afterwards."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.modes = {m: m.training for m in net.modules()}

    def __enter__(self) -> nn.Module:
        return self.net.eval()

    def __exit__(self, *error: object) -> None:
        for module, training in self.modes.items():
            module.training = training
