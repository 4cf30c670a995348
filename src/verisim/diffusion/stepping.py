"""What all samplers share: the walk over noise levels, the call of the denoiser, the noise."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from verisim.diffusion.schedules import check_sigmas
from verisim.errors import VerisimError

Denoise = Callable[[Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """What a callback sees."""

    i: int  # index into sigmas
    sigma: float  # noise level of x
    x: Tensor  # noisy state (B, ...)
    x0: Tensor  # the denoiser's estimate (B, ...)


Callback = Callable[[Step], None]


def draw_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise like x, drawn on the generator's device."""
    e = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return e.to(x.device)


def noise_source(generator: torch.Generator | None, x: Tensor) -> torch.Generator:
    """The generator, or a fresh one seeded by the system."""
    if generator is None:
        generator = torch.Generator(device=x.device)
        generator.seed()
    return generator


def steps(sigmas: Tensor) -> list[tuple[float, float]]:
    """Pairs (t, s) of neighbouring levels."""
    return list(pairwise(check_sigmas(sigmas).tolist()))


def denoise_at(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """denoise(x, sigma) at one level for the whole batch; VerisimError if the answer is not finite."""
    return check_finite(denoise(x, x.new_full((len(x),), sigma)), sigma)


def check_finite(x0: Tensor, sigma: float) -> Tensor:
    """x0 if all its values are finite: no sampler goes on with NaN."""
    if not torch.isfinite(x0).all():
        bad = int((~torch.isfinite(x0)).flatten(1).any(1).sum())
        raise VerisimError(
            f"The denoiser gave NaN or Inf for {bad} of {len(x0)} images at noise level {sigma:.4g}. Look at "
            f"the training loss, lower the guidance, or sample in float32 (bf16_sampling false)."
        )
    return x0


def denoised(denoise: Denoise, x: Tensor, sigma: float, i: int, callback: Callback | None) -> Tensor:
    x0 = denoise_at(denoise, x, sigma)
    if callback is not None:
        callback(Step(i, sigma, x, x0))
    return x0
