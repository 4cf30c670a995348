"""The variational bound of a denoiser in bits per dimension, in continuous time. Kingma 2021 (VDM).

-log p(x) <= KL(q(z_max | x) || p(z_max))                                   prior
           + E int sigma^-3 ||x - D(x + sigma eps, sigma)||^2 dsigma        diffusion (eq. 18, SNR = sigma^-2)
           + E -log p(x | z_min)                                            reconstruction
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from verisim.diffusion.schedules import check_sigma_data, check_steps
from verisim.diffusion.stepping import Denoise, draw_noise, noise_source
from verisim.errors import VerisimError

LEVELS = 256  # grey values of an 8-bit image
BIN = 2 / (LEVELS - 1)  # their distance in [-1, 1]


class Bound(NamedTuple):
    """Parts of the bound, (B,) float64 bits per dimension each."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor

    @property
    def total(self) -> Tensor:
        return self.prior + self.diffusion + self.reconstruction


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    x: Tensor,  # (B, C, *S) in [-1, 1]; rounded to the 256 grey values
    *,
    sigma_data: float = 0.5,  # standard deviation of the data; places the draws, cannot break the bound
    sigma_min: float = BIN,  # where the reconstruction takes over; about one grey value
    sigma_max: float | None = None,  # where the prior takes over; None = 160 sigma_data
    draws: int = 16,  # noise levels per image
    generator: torch.Generator | None = None,
) -> Bound:
    """Upper bound on -log2 p(x) per dimension of 8-bit images; draws + 1 evaluations per image."""
    high = 160 * check_sigma_data(sigma_data) if sigma_max is None else sigma_max
    check_steps(draws)
    if not 0 < sigma_min < high < math.inf:
        raise VerisimError(
            f"Likelihood: sigma_min = {sigma_min:g} and sigma_max = {high:g}; "
            f"0 < sigma_min < sigma_max is needed, e.g. {BIN:.4f} and {160 * sigma_data:g}."
        )
    generator = noise_source(generator, x)
    x = quantise(x)
    nats = (
        _prior(x, high, sigma_data),
        _diffusion(denoise, x, sigma_min, high, sigma_data, draws, generator),
        _reconstruction(denoise, x, sigma_min, sigma_data, generator),
    )
    dims = x[0].numel()
    return Bound(*(part / (dims * math.log(2)) for part in nats))


def quantise(x: Tensor) -> Tensor:
    """Round to the nearest of the 256 grey values in [-1, 1]."""
    return ((x.clamp(-1, 1) + 1) / BIN).round() * BIN - 1


def _prior(x: Tensor, sigma: float, sigma_data: float) -> Tensor:
    """KL(N(x, sigma^2) || N(0, sigma^2 + sigma_data^2)), (B,) nats."""
    ratio = sigma**2 / (sigma**2 + sigma_data**2)
    square = x.double().square().flatten(1) / (sigma**2 + sigma_data**2)
    return 0.5 * (square + ratio - 1 - math.log(ratio)).sum(1)


def _diffusion(
    denoise: Denoise,
    x: Tensor,
    low: float,
    high: float,
    sigma_data: float,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """E int ||x - D||^2 / sigma^2 dln sigma, (B,) nats.

    Levels are drawn with density proportional to 1 / (sigma^2 + sigma_data^2) in ln sigma * sigma_data^2:
    the integrand of Gaussian data, so that for those the estimate hardly varies. Its distribution
    function is G = ln(sigma^2 / (sigma^2 + sigma_data^2)) / 2. Draws are stratified over the images
    and, within an image, over its draws (Kingma 2021, appendix I.1).
    """
    b = len(x)
    g_low, g_high = (-0.5 * math.log1p((sigma_data / s) ** 2) for s in (low, high))
    start = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    offset = ((start + torch.arange(b, device=generator.device) / b) % 1).to(x.device)  # (B,)
    total = torch.zeros(b, dtype=torch.float64, device=x.device)
    for k in range(draws):
        g = g_low + (g_high - g_low) * (k + offset) / draws  # uniform in its stratum
        sigma = sigma_data * (torch.exp(2 * g) / -torch.expm1(2 * g)).sqrt()  # G inverted
        density = sigma_data**2 / (sigma**2 + sigma_data**2) / (g_high - g_low)  # of ln sigma
        noisy = x + sigma.to(x.dtype).view(-1, *[1] * (x.ndim - 1)) * draw_noise(x, generator)
        error = (x - denoise(noisy, sigma.to(x.dtype))).double().square().flatten(1).sum(1)
        total += error / sigma**2 / density
    return total / draws


def _reconstruction(
    denoise: Denoise, x: Tensor, sigma: float, sigma_data: float, generator: torch.Generator
) -> Tensor:
    """E -log p(x | z), z = x + sigma eps: a Gaussian around D(z) integrated over each grey value, (B,) nats.

    Its standard deviation is that of x given z if x were Gaussian; the outermost bins are open.
    """
    z = x + sigma * draw_noise(x, generator)
    centre = denoise(z, z.new_full((len(z),), sigma)).double()
    width = sigma * sigma_data / math.hypot(sigma, sigma_data)
    return grey_value_nats(x, centre, width)


def grey_value_nats(x: Tensor, centre: Tensor, width: float | Tensor) -> Tensor:
    """-log of N(centre, width^2) integrated over the grey values x (B, C, *S), (B,) nats; Ho 2020, eq. 13."""
    upper = ((x.double() - centre) + BIN / 2) / width
    lower = upper - BIN / width
    upper = upper.masked_fill(x > 1 - BIN / 2, math.inf)
    lower = lower.masked_fill(x < -1 + BIN / 2, -math.inf)
    return -_log_interval(lower, upper).flatten(1).sum(1)


def _log_interval(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)) without cancellation in either tail."""
    flip = lower > 0  # work in the lower tail
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return log_b + torch.log1p(-torch.exp(log_a - log_b))
