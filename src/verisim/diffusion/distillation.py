"""Progressive distillation: one step of a student lands where two DDIM steps of its teacher do. Salimans 2022.

With levels t > m > s and x = x0 + t eps, two steps of the teacher (algorithm 2, at the scale of this package)

    x_m = D(x, t) + (m/t)(x - D(x, t)),   x_s = D(x_m, m) + (s/m)(x_m - D(x_m, m))

are one step t -> s with the x0 that solves x_s = x0 + (s/t)(x - x0):

    target = (x_s - (s/t) x) / (1 - s/t)

The student's grid is every second level of the teacher's. Spec 003, section 17-G.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.diffusion.parametrisation import wide
from verisim.diffusion.schedules import make_sigmas
from verisim.diffusion.stepping import Denoise
from verisim.errors import VerisimError


def halved_grid(
    name: str,  # key of SCHEDULES
    n: int,  # the student's steps
    sigma_data: float,  # standard deviation of the data
    sigma_max: float,  # first level of a continuous schedule
) -> tuple[Tensor, Tensor]:
    """The student's levels (n + 1,) and the levels half-way (n,), float64: its teacher's grid of 2n steps, split.

    VerisimError for a schedule whose grid of n steps is not half of that of 2n (karras).
    """
    fine = make_sigmas(name, 2 * n, sigma_data, sigma_max)
    if not torch.allclose(fine[::2], make_sigmas(name, n, sigma_data, sigma_max), rtol=1e-9, atol=0):
        raise VerisimError(
            f"Schedule '{name}' cannot be halved: its {n} levels are no part of its {2 * n}. Use angle, flow, "
            f"shifted, or the vp_ grid that the teacher was trained on."
        )
    return fine[::2], fine[1::2]


def ddim_step(x: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x (B, ...) from levels t to s < t, (B,) each, along the line to x0."""
    return x0 + wide(s.double() / t.double(), x) * (x - x0)


def distillation_target(denoise: Denoise, x: Tensor, t: Tensor, m: Tensor, s: Tensor) -> Tensor:
    """The x0 (B, ...) with which one step t -> s equals the teacher's two steps t -> m -> s; levels (B,) each."""
    x_m = ddim_step(x, denoise(x, t), t, m)
    x_s = ddim_step(x_m, denoise(x_m, m), m, s)
    r = s.double() / t.double()
    return wide(1 / (1 - r), x) * (x_s - wide(r, x) * x)


def distillation_weight(sigma: Tensor, of_noise: bool = False) -> Tensor:
    """Weight (B,) float64 on the squared error of x0: max(SNR, 1), SNR = 1 / sigma^2. Salimans 2022, section 4.

    of_noise: the network answers with the noise, and max(SNR, 1) would weigh its own error up to sigma_max^2
    times; then SNR alone, which weighs all levels the same.
    """
    snr = sigma.double() ** -2
    return snr if of_noise else snr.clamp(min=1.0)
