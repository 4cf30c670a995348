"""Samplers: functions that walk a noise schedule by index. No hidden counters.

    sampler(denoise, x, sigmas, *, generator=None, callback=None) -> x0

    denoise(x, sigma) -> E[x0 | x], x (B, ...) any shape, sigma (B,) of x's dtype
    x         the initial state, sigmas[0] * standard normal noise
    sigmas    (n + 1,) float64, strictly decreasing, ending in 0 (verisim.diffusion.schedules)
    generator source of all noise; None draws a fresh, unrepeatable one
    callback  called with a Step after every denoising (previews, logs)

Coefficients are float64 numbers, the state keeps the dtype of x. Below, t is the present noise level
and s < t the next one. Scaling x by a function of t does not change q(x_s | x_t, x0), so what is
written here for x = x0 + sigma * eps is exactly the variance-preserving sampler on the same levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verisim.diffusion.flow_samplers import flow_euler, flow_heun
from verisim.diffusion.multistep import pndm
from verisim.diffusion.stepping import (
    Callback,
    Denoise,
    denoise_at,
    denoised,
    draw_noise,
    noise_source,
    steps,
)
from verisim.errors import VerisimError

Run = Callable[..., Tensor]


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DDIM with eta = 0: Euler on dx/dsigma = (x - D) / sigma. Song 2021 (DDIM), eq. 13; n evaluations."""
    for i, (t, s) in enumerate(steps(sigmas)):
        x0 = denoised(denoise, x, t, i, callback)
        x = x0 + (s / t) * (x - x0)
    return x


def ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Ancestral sampling, exactly respaced: draws from q(x_s | x_t, x0 = D). Ho 2020, eq. 7; n evaluations.

    For any pair of levels: mean x0 + (s/t)^2 (x_t - x0), variance s^2 (t^2 - s^2) / t^2, which is
    beta-tilde of the respaced chain.
    """
    generator = noise_source(generator, x)
    for i, (t, s) in enumerate(steps(sigmas)):
        x0 = denoised(denoise, x, t, i, callback)
        r = (s / t) ** 2
        x = x0 + r * (x - x0)
        if s > 0:
            x = x + s * math.sqrt(1 - r) * draw_noise(x, generator)
    return x


def ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,  # 0 = deterministic (euler), 1 = ancestral (ddpm)
) -> Tensor:
    """DDIM with fresh noise of standard deviation eta s sqrt(1 - (s/t)^2). Song 2021 (DDIM), eq. 12, 16."""
    if not 0 <= eta <= 1:
        raise VerisimError(f"eta = {eta:g}: DDIM takes 0 (deterministic) to 1 (ancestral).")
    generator = noise_source(generator, x)
    for i, (t, s) in enumerate(steps(sigmas)):
        x0 = denoised(denoise, x, t, i, callback)
        fresh = eta * s * math.sqrt(1 - (s / t) ** 2)
        x = x0 + math.sqrt(s**2 - fresh**2) / t * (x - x0)
        if fresh > 0:
            x = x + fresh * draw_noise(x, generator)
    return x


def renoise(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    fresh: bool = False,  # noise to add back: False = the predicted one (DDIM), True = a new draw
) -> Tensor:
    """Predict x0, add noise of the next level back. Saeed & Hu 2024 (spec 003, section 4.5); n evaluations.

    With fresh noise this is not the posterior q(x_s | x_t, x0): the state forgets its own past, so samples
    are smoother than the data, the more so the more steps there are. On N(m, d^2) a step takes variance V
    to d^4 V / (d^2 + t^2)^2 + s^2.
    """
    if not fresh:
        return euler(denoise, x, sigmas, generator=generator, callback=callback)
    generator = noise_source(generator, x)
    for i, (t, s) in enumerate(steps(sigmas)):
        x = denoised(denoise, x, t, i, callback)
        if s > 0:
            x = x + s * draw_noise(x, generator)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    churn: float = 0.0,  # S_churn: noise added back over the whole path; 0 = deterministic
    churn_min: float = 0.0,  # S_tmin, S_tmax: levels between which it is added
    churn_max: float = math.inf,
    churn_noise: float = 1.0,  # S_noise: its inflation
) -> Tensor:
    """EDM's second-order sampler. Karras 2022, algorithm 2; 2n - 1 evaluations."""
    if not churn >= 0:
        raise VerisimError(f"churn = {churn:g}: it must be 0 (deterministic) or more, e.g. 40.")
    generator = noise_source(generator, x)
    n = len(sigmas) - 1
    for i, (t, s) in enumerate(steps(sigmas)):
        gamma = min(churn / n, math.sqrt(2) - 1) if churn_min <= t <= churn_max else 0.0
        if gamma > 0:
            up = t * (1 + gamma)
            x = x + math.sqrt(up**2 - t**2) * churn_noise * draw_noise(x, generator)
            t = up
        slope = (x - denoised(denoise, x, t, i, callback)) / t
        x_s = x + (s - t) * slope
        if s > 0:
            slope_s = (x_s - denoise_at(denoise, x_s, s)) / s
            x_s = x + (s - t) * 0.5 * (slope + slope_s)
        x = x_s
    return x


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M). Lu 2022, algorithm 2; n evaluations, second order."""
    return dpmpp_2m_sde(denoise, x, sigmas, generator=generator, callback=callback, eta=0.0)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,  # 0 = dpmpp_2m, 1 = the reverse SDE
) -> Tensor:
    """SDE-DPM-Solver++(2M). Lu 2022, eq. 18 with the midpoint form of its correction; n evaluations.

    Without the correction it is ddpm. The last step (to 0, infinite in log sigma) is first order: x0 = D.
    """
    generator = noise_source(generator, x)
    previous: Tensor | None = None  # D at the level before t
    h_previous = 0.0
    for i, (t, s) in enumerate(steps(sigmas)):
        x0 = denoised(denoise, x, t, i, callback)
        if s == 0:
            return x0
        h = math.log(t / s)
        target = x0 if previous is None else x0 + (0.5 * h / h_previous) * (x0 - previous)
        keep = math.exp(-(1 + eta) * h)
        x = target + keep * (x - target)
        if eta > 0:
            x = x + s * math.sqrt(-math.expm1(-2 * eta * h)) * draw_noise(x, generator)
        previous, h_previous = x0, h
    return x


@dataclass(frozen=True)
class Method:
    """A sampler with what one should know before choosing it."""

    run: Run  # run(denoise, x, sigmas, *, generator, callback) -> x0
    evaluations: Callable[[int], int]  # network evaluations of n steps
    stochastic: bool  # draws noise at its default settings
    schedule: str  # the schedule that suits it best (key of SCHEDULES)


def _one(n: int) -> int:
    return n


def _two(n: int) -> int:
    return 2 * n - 1


SAMPLERS: dict[str, Method] = {
    "euler": Method(euler, _one, False, "angle"),
    "ddim": Method(ddim, _one, False, "angle"),
    "ddpm": Method(ddpm, _one, True, "angle"),
    "heun": Method(heun, _two, False, "shifted"),
    "dpmpp_2m": Method(dpmpp_2m, _one, False, "flow"),
    "dpmpp_2m_sde": Method(dpmpp_2m_sde, _one, True, "flow"),
    "pndm": Method(pndm, _one, False, "angle"),
    "renoise": Method(renoise, _one, False, "angle"),
    "flow_euler": Method(flow_euler, _one, False, "flow"),
    "flow_heun": Method(flow_heun, _two, False, "flow"),
}
