"""Looking inside an autoencoder: what each latent does to an image (source 001, section 5.6, K-E3, K-E8).

The source moved four latents, chosen by eye, from -1 to 1. Here latents are chosen by their KL, moved in
units of the aggregate posterior's standard deviation, and what they change is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.metrics.latents import active_units
from verisim.models.autoencoders.gaussian import kl_standard_normal
from verisim.roles import CodeSpace, LatentSpace


@dataclass(frozen=True)
class LatentUse:
    """How a data set uses the latents; all (d,) float64."""

    mean: Tensor  # of the aggregate posterior 1/N sum_i q(z | x_i)
    std: Tensor  # its standard deviation
    kl: Tensor  # mean KL(q(z_j | x) || N(0, 1)) in nats
    active: Tensor  # bool: the posterior mean varies (metrics.latents.ACTIVE)

    def busiest(self, n: int) -> list[int]:
        """The n latents with the largest KL, largest first."""
        return self.kl.argsort(descending=True, stable=True)[:n].tolist()

    def check(self, dims: Sequence[int]) -> list[int]:
        """dims as given, or VerisimError naming one that the model does not have."""
        wrong = [j for j in dims if not 0 <= j < len(self.kl)]
        if wrong:
            raise VerisimError(f"Latent {wrong[0]} asked for; this model has latents 0...{len(self.kl) - 1}.")
        return list(dims)


def require_latents(model: Any) -> LatentSpace:
    """The model as a LatentSpace, or a VerisimError that says what to do with this one instead."""
    if isinstance(model, CodeSpace):
        raise VerisimError(
            f"A {getattr(model, 'family', 'model')} model has discrete codes and no continuous latent to move. "
            f"Exchange its codes between two images with 'verisim explore swap RUN'."
        )
    if not isinstance(model, LatentSpace):
        raise VerisimError(
            f"A {getattr(model, 'family', 'model')} model has no continuous latent to look into. Explore an "
            f"autoencoder, e.g. one trained with 'verisim train X-V-fix'."
        )
    return model


def latent_use(model: LatentSpace, images: Tensor) -> LatentUse:
    """Statistics of the latents over images (N, C, *S) in [-1, 1]; at least two."""
    if len(images) < 2:
        raise VerisimError(f"{len(images)} image(s); latent statistics need at least 2.")
    mean, log_variance = (t.cpu() for t in model.posterior(images))
    spread = mean.double().var(0, correction=0) + log_variance.double().exp().mean(0)  # law of total variance
    kl = kl_standard_normal(mean, log_variance).double().mean(0)
    return LatentUse(mean.double().mean(0), spread.sqrt(), kl, active_units(mean))


@dataclass(frozen=True)
class Traversal:
    """One image with single latents moved, all others held."""

    dims: list[int]  # K latents
    steps: Tensor  # (F,) displacement in standard deviations
    frames: Tensor  # (K, F, C, *S) in [-1, 1]
    heat: Tensor  # (K, *S) standard deviation over the frames, mean over channels: where the latent acts
    change: Tensor  # (K,) root mean square change between neighbouring frames
    jump: Tensor  # (K,) largest over mean change between neighbouring frames; near 1 = smooth


def traverse(
    model: LatentSpace,
    image: Tensor,  # (C, *S) in [-1, 1]
    use: LatentUse,
    dims: Sequence[int] | None = None,  # latents; None = the `count` with the largest KL
    count: int = 8,
    frames: int = 9,  # odd, so that the middle one is the reconstruction
    span: float = 3.0,  # standard deviations of the aggregate posterior to either side
) -> Traversal:
    """Move one latent at a time from -span to +span standard deviations around the image's own code."""
    if frames < 3 or frames % 2 == 0:
        raise VerisimError(
            f"frames={frames}: give an odd number of 3 or more, so that one is the image itself."
        )
    if not span > 0:
        raise VerisimError(f"span={span:g}: give a positive number of standard deviations, e.g. 3.")
    chosen = use.busiest(count) if dims is None else use.check(dims)
    z = model.encode(image[None])[0]  # (d,)
    steps = torch.linspace(-span, span, frames)
    codes = z.repeat(len(chosen), frames, 1)  # (K, F, d)
    for k, j in enumerate(chosen):
        codes[k, :, j] += steps.to(z) * float(use.std[j])
    shown = model.decode(codes.flatten(0, 1)).unflatten(0, (len(chosen), frames)).cpu()
    between = (shown[:, 1:] - shown[:, :-1]).flatten(2).square().mean(2).sqrt()  # (K, F - 1)
    mean = between.mean(1)
    jump = between.amax(1) / mean.clamp(min=1e-12)
    return Traversal(chosen, steps, shown, shown.std(1, correction=0).mean(1), mean, jump)


def interpolate(model: LatentSpace, a: Tensor, b: Tensor, frames: int = 9) -> Tensor:
    """(F, C, *S): decoded codes on the straight line from image a to image b (C, *S), both ends included."""
    if frames < 2:
        raise VerisimError(f"frames={frames}: an interpolation has at least its two ends.")
    z = model.encode(torch.stack([a, b]))  # (2, d)
    t = torch.linspace(0, 1, frames).to(z)[:, None]
    return model.decode((1 - t) * z[0] + t * z[1]).cpu()
