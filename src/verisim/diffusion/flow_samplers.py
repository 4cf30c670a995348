"""The probability-flow ODE in rectified-flow time: y = (1 - t) x0 + t eps with t in [0, 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.diffusion.stepping import Callback, Denoise, denoise_at, denoised, steps


def flow_euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Rectified-flow Euler, y_s = y_t + (s - t) v with y = (1 - t) x0 + t eps. Liu 2022; n evaluations.

    A straight step in flow time keeps both x0 and eps, as DDIM does: the two are one sampler.
    """
    for i, (a, b) in enumerate(steps(sigmas)):
        t, s = a / (1 + a), b / (1 + b)
        y = (1 - t) * x
        velocity = (y - denoised(denoise, x, a, i, callback)) / t  # v = eps - x0 = (y - x0) / t
        x = (y + (s - t) * velocity) / (1 - s)
    return x


def flow_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    sigma_data: float = 0.5,  # unit of flow time: t = sigma / (sigma + sigma_data)
) -> Tensor:
    """Heun on the same ODE in flow time; 2n - 1 evaluations.

    Flow time is bounded and the data stay in reach, so that few and large steps do not overshoot as
    those of `heun` do.
    """
    c = sigma_data
    for i, (a, b) in enumerate(steps(sigmas)):
        t, s = a / (a + c), b / (b + c)
        y = (1 - t) * x
        velocity = (y - denoised(denoise, x, a, i, callback)) / t
        y_s = y + (s - t) * velocity
        if s > 0:
            velocity_s = (y_s - denoise_at(denoise, y_s / (1 - s), b)) / s
            y_s = y + (s - t) * 0.5 * (velocity + velocity_s)
        x = y_s / (1 - s)
    return x
