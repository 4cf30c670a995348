"""Noise schedules: strictly decreasing noise levels that end in exactly 0.

x = x0 + sigma * eps. A schedule of n steps is a float64 tensor (n + 1,); a sampler walks it by index.
Grids of training steps (variance preserving, T = 1000) are respaced by integer arithmetic, so that no
two levels can coincide at any n; the others are closed formulas in units of the data's standard
deviation, because a range made for std 0.5 wastes its steps on narrow data.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from verisim.errors import VerisimError, pick

TRAIN_STEPS = 1000  # T of the variance-preserving schedules


def check_sigmas(sigmas: Tensor) -> Tensor:
    """Return sigmas if they are a schedule: (n + 1,) float64, finite, strictly decreasing, ending in 0.

    Raises VerisimError otherwise. Every schedule and every sampler passes through here.
    """
    if not isinstance(sigmas, Tensor) or sigmas.dtype != torch.float64 or sigmas.ndim != 1:
        raise VerisimError(
            "A noise schedule must be a one-dimensional float64 tensor (steps + 1,); "
            f"got {_describe(sigmas)}. Build one with verisim.diffusion.schedules."
        )
    if len(sigmas) < 2:
        raise VerisimError(
            f"A noise schedule needs at least one step (two levels); this one has {len(sigmas)} levels."
        )
    if not torch.isfinite(sigmas).all():
        raise VerisimError(f"A noise schedule must be finite; got {_describe(sigmas)}.")
    if float(sigmas[-1]) != 0.0:
        raise VerisimError(
            f"A noise schedule must end in exactly 0; this one ends in {float(sigmas[-1]):g}. Append a 0."
        )
    steps = sigmas[:-1] - sigmas[1:]
    if not (steps > 0).all():
        i = int((steps <= 0).nonzero()[0])
        raise VerisimError(
            f"A noise schedule must decrease strictly; level {i} is {float(sigmas[i]):.6g} and level "
            f"{i + 1} is {float(sigmas[i + 1]):.6g}. Use fewer steps, or another schedule."
        )
    return sigmas


def karras(
    n: int,  # steps
    sigma_data: float = 0.5,  # standard deviation of the data
    sigma_max: float | None = None,  # first level; None = 160 sigma_data (80 at 0.5)
    sigma_min: float | None = None,  # last level above 0; None = 0.004 sigma_data (0.002 at 0.5)
    rho: float = 7.0,  # larger = more steps at low noise
) -> Tensor:
    """Levels (n + 1,) uniform in sigma^(1/rho), then 0. Karras 2022, eq. 5."""
    check_steps(n)
    high = 160 * check_sigma_data(sigma_data) if sigma_max is None else sigma_max
    low = 0.004 * sigma_data if sigma_min is None else sigma_min
    if not (math.isfinite(high) and 0 < low < high):
        raise VerisimError(
            f"Noise range sigma_min = {low:g}, sigma_max = {high:g}: 0 < sigma_min < sigma_max is needed. "
            f"For this data try {0.004 * sigma_data:g} and {160 * sigma_data:g}."
        )
    i = torch.linspace(0, 1, n, dtype=torch.float64)  # (n,); one step: only sigma_max
    a, b = high ** (1 / rho), low ** (1 / rho)
    sigmas = (a + i * (b - a)) ** rho
    sigmas[0] = high
    return check_sigmas(torch.cat([sigmas, sigmas.new_zeros(1)]))


def angle(n: int, sigma_data: float = 0.5, sigma_max: float | None = None) -> Tensor:
    """Levels (n + 1,) uniform in the angle atan(sigma / sigma_data); sigma_max None = 1000 sigma_data.

    The best grid for Euler (DDIM) on Gaussian data of that standard deviation: a step between the
    angles a and b shrinks the standard deviation by cos(a - b), whose product is largest when all
    steps are equal. At sigma_data = 1 it is the continuous cosine schedule.
    """
    check_steps(n)
    top = _top(sigma_data, sigma_max) / sigma_data
    sigmas = sigma_data * torch.tan(_fractions(n) * math.atan(top))
    return check_sigmas(sigmas)


def flow(n: int, sigma_data: float = 0.5, sigma_max: float | None = None) -> Tensor:
    """Levels (n + 1,) uniform in rectified-flow time t = sigma / (sigma + sigma_data), Liu 2022.

    t = 1 would be infinite noise: the first level is capped at sigma_max (None = 1000 sigma_data).
    """
    return shifted(n, sigma_data, sigma_max, shift=1.0)


def shifted(
    n: int,  # steps
    sigma_data: float = 0.5,  # standard deviation of the data
    sigma_max: float | None = None,  # first level; None = 1000 sigma_data
    shift: float = 3.0,  # > 1 spends more steps at high noise, for large images
) -> Tensor:
    """Rectified-flow levels (n + 1,) sigma = shift * sigma_data * t / (1 - t), t uniform. Esser 2024, eq. 23."""
    check_steps(n)
    if not (math.isfinite(shift) and shift > 0):
        raise VerisimError(f"shift = {shift:g}: it must be a positive number, e.g. 1 (none) or 3.")
    top = _top(sigma_data, sigma_max) / (shift * sigma_data)
    t = _fractions(n) * (top / (1 + top))
    return check_sigmas(shift * sigma_data * t / (1 - t))


def vp_linear(n: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """The DDPM grid (linear betas), n of its train_steps levels, then 0. Ho 2020, section 4."""
    return respace(vp_linear_table(train_steps), n)


def vp_cosine(n: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """The cosine grid, n of its train_steps levels, then 0. Nichol 2021, eq. 17."""
    return respace(vp_cosine_table(train_steps), n)


def vp_scaled_linear(n: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """The grid of latent diffusion, n of its train_steps levels, then 0. Rombach 2022; spec 003, section 0.4."""
    return respace(vp_scaled_linear_table(train_steps), n)


def vp_sigmoid(n: int, train_steps: int = TRAIN_STEPS) -> Tensor:
    """The grid of sigmoid betas, n of its train_steps levels, then 0."""
    return respace(vp_sigmoid_table(train_steps), n)


def vp_linear_table(
    train_steps: int = TRAIN_STEPS, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Tensor:
    """sigma_t of training steps t = 1...T, (T,) float64 increasing, for linear betas."""
    check_steps(train_steps)
    return _sigmas_of_betas(torch.linspace(beta_start, beta_end, train_steps, dtype=torch.float64))


def vp_scaled_linear_table(
    train_steps: int = TRAIN_STEPS, beta_start: float = 0.0015, beta_end: float = 0.0195
) -> Tensor:
    """sigma_t of training steps t = 1...T, (T,) float64 increasing, for betas whose roots are linear.

    Some code calls this "linear" (latent diffusion) or "quadratic" (SR3).
    """
    check_steps(train_steps)
    roots = torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), train_steps, dtype=torch.float64)
    return _sigmas_of_betas(roots**2)


def vp_sigmoid_table(
    train_steps: int = TRAIN_STEPS, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Tensor:
    """sigma_t of training steps t = 1...T, (T,) float64 increasing; betas rise as a sigmoid on [-6, 6]."""
    check_steps(train_steps)
    rise = torch.sigmoid(torch.linspace(-6, 6, train_steps, dtype=torch.float64))
    return _sigmas_of_betas(beta_start + (beta_end - beta_start) * rise)


def vp_cosine_table(train_steps: int = TRAIN_STEPS, offset: float = 0.008) -> Tensor:
    """sigma_t of training steps t = 1...T, (T,) float64 increasing, for the cosine alpha_bar."""
    check_steps(train_steps)
    t = torch.arange(train_steps + 1, dtype=torch.float64) / train_steps
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return _sigmas_of_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))


def respace(table: Tensor, n: int) -> Tensor:
    """n evenly spaced levels of an increasing table (T,), from the noisiest down, then 0.

    Training step of level i is round(T (1 - i / n)), in integers: distinct for every 1 <= n <= T.
    """
    total = len(table)
    check_steps(n)
    if n > total:
        raise VerisimError(
            f"{n} steps asked of a schedule with {total} training steps; 1...{total} are possible. "
            f"For more use a continuous schedule: karras, angle or flow."
        )
    index = torch.tensor([(2 * total * (n - i) + n) // (2 * n) - 1 for i in range(n)])
    return check_sigmas(torch.cat([table[index], table.new_zeros(1)]))


SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "karras": karras,
    "angle": angle,
    "flow": flow,
    "shifted": shifted,
    "vp_linear": vp_linear,
    "vp_cosine": vp_cosine,
    "vp_scaled_linear": vp_scaled_linear,
    "vp_sigmoid": vp_sigmoid,
}
TABLES: dict[str, Callable[[], Tensor]] = {  # levels of training steps 1...T
    "vp_linear": vp_linear_table,
    "vp_cosine": vp_cosine_table,
    "vp_scaled_linear": vp_scaled_linear_table,
    "vp_sigmoid": vp_sigmoid_table,
}
_SCALED: dict[str, Callable[[int, float, float | None], Tensor]] = {
    "karras": karras,
    "angle": angle,
    "flow": flow,
    "shifted": shifted,
}


def make_sigmas(
    name: str,  # a key of SCHEDULES
    n: int,  # steps
    sigma_data: float = 0.5,  # standard deviation of the data
    sigma_max: float | None = None,  # first level; None = the schedule's own
) -> Tensor:
    """The named schedule (n + 1,) for data of a given scale.

    The variance-preserving grids are what a network was trained on: neither scale nor range moves them.
    """
    schedule = pick(SCHEDULES, name, "schedule")
    return _SCALED[name](n, sigma_data, sigma_max) if name in _SCALED else schedule(n)


def check_steps(n: int) -> int:
    """n if it is an integer of at least 1, else VerisimError."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise VerisimError(f"{n!r} steps asked; a whole number of at least 1 is needed, e.g. 18.")
    return n


def check_sigma_data(sigma_data: float) -> float:
    """sigma_data if it is finite and positive, else VerisimError."""
    if not (math.isfinite(sigma_data) and sigma_data > 0):
        raise VerisimError(
            f"sigma_data = {sigma_data:g}: the data's standard deviation must be positive and finite "
            f"(0.5 suits chest X-rays in [-1, 1]). Constant images cannot be modelled."
        )
    return sigma_data


def _top(sigma_data: float, sigma_max: float | None) -> float:
    top = 1000 * check_sigma_data(sigma_data) if sigma_max is None else sigma_max
    if not (math.isfinite(top) and top > 0):
        raise VerisimError(f"sigma_max = {top:g}: it must be positive and finite, e.g. {160 * sigma_data:g}.")
    return top


def _fractions(n: int) -> Tensor:
    """1, 1 - 1/n, ..., 0 exactly; (n + 1,) float64."""
    return torch.arange(n, -1, -1, dtype=torch.float64) / n


def _sigmas_of_betas(betas: Tensor) -> Tensor:
    alpha_bar = torch.cumprod(1 - betas, 0)
    return ((1 - alpha_bar) / alpha_bar).sqrt()  # x_VP = sqrt(alpha_bar) * (x0 + sigma * eps)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}, {value.dtype}, {int((~torch.isfinite(value)).sum())} not finite"
    return type(value).__name__
