"""Exact likelihood by the probability-flow ODE. Song 2021 (SDE), section 4.3 and appendix D.2; Karras 2022, eq. 1.

With l = ln sigma the flow is dx/dl = x - D(x, sigma), and along it

    d log p_sigma(x) / dl = -div(x - D) = tr(dD/dx) - d          d: values per image

so log p_low(x) = log p_high(x_high) + int (d - tr(dD/dx)) dl, from the lowest level up.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from verisim.diffusion.schedules import check_sigma_data, check_steps
from verisim.diffusion.stepping import Denoise, check_finite, noise_source
from verisim.errors import VerisimError


def ode_log_prob(
    denoise: Denoise,  # differentiable in x
    x: Tensor,  # (B, C, *S): points of the data blurred by sigma_min
    *,
    sigma_data: float = 0.5,  # standard deviation of the data, for the Gaussian at the far end
    sigma_min: float = 0.002,  # the density is that of data + sigma_min eps
    sigma_max: float | None = None,  # where the Gaussian takes over; None = 160 sigma_data
    steps: int = 100,  # Heun steps, uniform in ln sigma; 2 evaluations and gradients each
    probes: int = 0,  # random sign vectors for the trace (Hutchinson); 0 = exact, one gradient per value
    generator: torch.Generator | None = None,
) -> Tensor:
    """log p(x) in nats, (B,) float64: exact up to the ODE solver (second order in 1 / steps) and the probes.

    Divide by -d ln 2 for bits per dimension of real numbers; for 8-bit images add uniform noise of one
    grey value to x first and log2(255 / 2) afterwards.
    """
    high = 160 * check_sigma_data(sigma_data) if sigma_max is None else sigma_max
    check_steps(steps)
    if not 0 < sigma_min < high < math.inf:
        raise VerisimError(
            f"Likelihood: sigma_min = {sigma_min:g} and sigma_max = {high:g}; "
            f"0 < sigma_min < sigma_max is needed, e.g. 0.002 and {160 * sigma_data:g}."
        )
    if probes < 0:
        raise VerisimError(f"probes = {probes}: it must be 0 (exact trace) or more.")
    signs = _signs(x, probes, noise_source(generator, x))
    d = x[0].numel()
    levels = torch.linspace(math.log(sigma_min), math.log(high), steps + 1, dtype=torch.float64).tolist()
    change = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # int (d - tr) dl
    for a, b in pairwise(levels):
        h = b - a
        slope, trace = _flow(denoise, x, math.exp(a), signs)
        slope_b, trace_b = _flow(denoise, x + h * slope, math.exp(b), signs)
        x = x + 0.5 * h * (slope + slope_b)
        change = change + h * (d - 0.5 * (trace + trace_b))
    variance = high**2 + sigma_data**2
    end = -0.5 * (x.double().square().flatten(1).sum(1) / variance + d * math.log(2 * math.pi * variance))
    return end + change


def _signs(x: Tensor, probes: int, generator: torch.Generator) -> list[Tensor] | None:
    if probes == 0:
        return None
    draws = [torch.rand(x.shape, generator=generator, device=generator.device) for _ in range(probes)]
    return [torch.where(u < 0.5, -1.0, 1.0).to(x) for u in draws]


def _flow(denoise: Denoise, x: Tensor, sigma: float, signs: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """x - D (B, C, *S) and tr(dD/dx) (B,) float64."""
    with torch.enable_grad():
        y = x.detach().requires_grad_(True)
        x0 = check_finite(denoise(y, y.new_full((len(y),), sigma)), sigma)
        directions = signs if signs is not None else _axes(x)
        trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for e in directions:  # e^T (dD/dx) e
            (row,) = torch.autograd.grad(x0, y, e, retain_graph=True)
            trace += (row * e).double().flatten(1).sum(1)
    return x - x0.detach(), trace / (1 if signs is None else len(signs))


def _axes(x: Tensor) -> list[Tensor]:
    """The unit vectors of one image, (B, C, *S) each."""
    d = x[0].numel()
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    return [e.view(1, *x.shape[1:]).expand_as(x) for e in eye]
