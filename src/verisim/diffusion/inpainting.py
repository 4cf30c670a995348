"""RePaint: inpainting with an unconditional denoiser. Lugmayr 2022, algorithm 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verisim.diffusion.schedules import check_steps
from verisim.diffusion.stepping import Callback, Denoise, denoised, draw_noise, noise_source, steps
from verisim.errors import VerisimError


def repaint(
    denoise: Denoise,
    x: Tensor,  # initial state sigmas[0] * noise, (B, C, *S)
    sigmas: Tensor,  # (n + 1,)
    known: Tensor,  # image whose masked part is given, broadcastable to x
    mask: Tensor,  # bool, True = known, False = to be filled in; broadcastable to x
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    resamples: int = 10,  # times each stretch of the walk is walked
    jump: int = 1,  # its length in steps
) -> Tensor:
    """Fill in the unknown part of images; n * resamples evaluations.

    Each ancestral step joins the known part, noised to the same level, with the generated part. Walking
    a stretch again after noising the whole back up lets the two agree. The known part comes out
    unchanged. Raises VerisimError for a mask that is not bool or does not fit.
    """
    check_mask(mask, x)
    check_steps(resamples)
    check_steps(jump)
    generator = noise_source(generator, x)
    pairs = steps(sigmas)
    for start in range(0, len(pairs), jump):
        stretch = range(start, min(start + jump, len(pairs)))
        for round_ in range(resamples):
            if round_ > 0:  # from the stretch's last level back up to its first
                low, high = pairs[stretch[-1]][1], pairs[start][0]
                x = x + math.sqrt(high**2 - low**2) * draw_noise(x, generator)
            for i in stretch:
                t, s = pairs[i]
                x0 = denoised(denoise, x, t, i, callback)
                r = (s / t) ** 2
                x = x0 + r * (x - x0) + s * math.sqrt(1 - r) * draw_noise(x, generator)
                x = torch.where(mask, known + s * draw_noise(x, generator), x)
    return x


def check_mask(mask: Tensor, x: Tensor) -> None:
    """VerisimError for a mask that is not bool or does not broadcast to x (B, C, *S)."""
    if mask.dtype != torch.bool:
        raise VerisimError(
            f"The inpainting mask is {mask.dtype}; it must be bool, True where the image is known. "
            f"Convert it with mask > 0.5."
        )
    try:
        torch.broadcast_shapes(mask.shape, x.shape)
    except RuntimeError:
        raise VerisimError(
            f"The inpainting mask has shape {tuple(mask.shape)}; it must fit images of shape "
            f"{tuple(x.shape)} (batch, channels, *size)."
        ) from None
