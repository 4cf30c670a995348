"""Guidance wraps a denoiser into another denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from verisim.errors import VerisimError

ConditionalDenoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, sigma, label) -> x0


def classifier_free(
    denoise: ConditionalDenoise,
    scale: float,  # 0 = unconditional, 1 = conditional, > 1 = away from the unconditional, < 0 = away from the class
    null_label: int,  # the class index that means "none"
    limit: float | None = 1.0,  # largest |x0| of an extrapolation; None = unlimited
) -> ConditionalDenoise:
    """D = D_null + scale (D_label - D_null). Ho 2022, eq. 6, for x0.

    Scales 0 and 1 cost one evaluation, others one of twice the batch. Outside [0, 1] this is an
    extrapolation: it is clipped to [-limit, limit], the range of the images, so that any scale, be it
    -1 or 1e6, gives finite (if saturated) images. Raises VerisimError if scale is not finite.
    """
    if not math.isfinite(scale):
        raise VerisimError(
            f"guidance = {scale}: it must be finite; 0 = none, 1 = plain, 1.5 to 4 = stronger."
        )

    def guided(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        if scale == 1:
            return denoise(x, sigma, label)
        null = torch.full_like(label, null_label)
        if scale == 0:
            return denoise(x, sigma, null)
        both = denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([label, null]))
        conditional, unconditional = both.chunk(2)  # (B, C, *S) each
        x0 = unconditional + scale * (conditional - unconditional)
        return x0 if limit is None or 0 <= scale <= 1 else x0.clamp(-limit, limit)

    return guided
