"""From a raw network to a denoiser: what the network is asked for, whatever its training target.

Every parametrisation is D(x, sigma) = c_skip x + c_out F(c_in x, c_noise, label)   (Karras 2022, eq. 7)
with x = x0 + sigma eps. The network F then has the target ((1 - c_skip) x0 - c_skip sigma eps) / c_out,
and a unit weight on its error is the weight 1 / c_out^2 on the error of x0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from verisim.diffusion.schedules import check_sigma_data, vp_linear_table
from verisim.errors import VerisimError, pick

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # F(x_in, c_noise, label), shape of x_in


class Coefficients(NamedTuple):
    """(B,) float64 each; (B, C) where each channel has its own sigma_data, but for c_noise."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor  # what the network is told of the noise level
    c_data: Tensor  # 1 - c_skip, without cancellation


# sigma (B,), sigma_data, table (T,); or sigma (B, 1) and sigma_data (C,)
Formula = Callable[[Tensor, float | Tensor, Tensor], Coefficients]


def edm(sigma: Tensor, sigma_data: float | Tensor, table: Tensor) -> Coefficients:
    """Karras 2022, table 1: input and target of unit variance at every level; c_noise = ln(sigma) / 4."""
    total = sigma**2 + sigma_data**2
    return Coefficients(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=1 / total.sqrt(),
        c_noise=sigma.log() / 4,
        c_data=sigma**2 / total,
    )


def epsilon(sigma: Tensor, sigma_data: float | Tensor, table: Tensor) -> Coefficients:
    """F = eps (Ho 2020, eq. 14): x0 = x - sigma F. Input sqrt(alpha_bar) x, c_noise = step 0...T - 1."""
    return Coefficients(
        c_skip=torch.ones_like(sigma),
        c_out=-sigma,
        c_in=(1 + sigma**2).rsqrt(),
        c_noise=step_number(sigma, table),
        c_data=torch.zeros_like(sigma),
    )


def x0(sigma: Tensor, sigma_data: float | Tensor, table: Tensor) -> Coefficients:
    """F = x0."""
    return Coefficients(
        c_skip=torch.zeros_like(sigma),
        c_out=torch.ones_like(sigma),
        c_in=(1 + sigma**2).rsqrt(),
        c_noise=step_number(sigma, table),
        c_data=torch.ones_like(sigma),
    )


def v(sigma: Tensor, sigma_data: float | Tensor, table: Tensor) -> Coefficients:
    """F = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (Salimans 2022, appendix D)."""
    total = 1 + sigma**2  # alpha_bar = 1 / total
    return Coefficients(
        c_skip=1 / total,
        c_out=-sigma * total.rsqrt(),
        c_in=total.rsqrt(),
        c_noise=step_number(sigma, table),
        c_data=sigma**2 / total,
    )


def flow(sigma: Tensor, sigma_data: float | Tensor, table: Tensor) -> Coefficients:
    """F = eps - x0, the rectified-flow velocity (Liu 2022): x0 = y - t F, y = (1 - t) x, t = c_noise."""
    t = sigma / (1 + sigma)
    return Coefficients(c_skip=1 - t, c_out=-t, c_in=1 - t, c_noise=t, c_data=t)


PARAMETRISATIONS: dict[str, Formula] = {"edm": edm, "epsilon": epsilon, "x0": x0, "v": v, "flow": flow}
STEP_NUMBERED = ("epsilon", "x0", "v")  # their c_noise is a training step, the others' a small real


class Parametrisation:
    """One entry of PARAMETRISATIONS with its constants: denoiser and training loss."""

    def __init__(
        self,
        name: str,  # key of PARAMETRISATIONS
        sigma_data: float | Tensor = 0.5,  # standard deviation of the data (edm); (C,) = of each channel
        table: Tensor | None = None,  # sigma of training steps 1...T (epsilon, x0, v); None = linear betas
    ) -> None:
        self.formula = pick(PARAMETRISATIONS, name, "parametrisation")
        self.name = name
        for s in sigma_data.tolist() if isinstance(sigma_data, Tensor) else [sigma_data]:
            check_sigma_data(s)
        self.sigma_data = sigma_data
        self.table = vp_linear_table() if table is None else table.double()

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The coefficients at noise levels sigma (B,) > 0, float64."""
        table = self.table.to(sigma.device)
        if not isinstance(self.sigma_data, Tensor):
            return self.formula(sigma.double(), self.sigma_data, table)
        c = self.formula(sigma.double()[:, None], self.sigma_data.to(sigma.device).double(), table)
        return c._replace(c_noise=c.c_noise[:, 0])

    def denoise(self, network: Network, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """E[x0 | x] of x (B, C, *S) at levels sigma (B,); dtype and shape of x."""
        return self.assemble(self.answer(network, x, sigma, label), x, sigma)

    def answer(self, network: Network, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """What the network says of x (B, C, *S) at levels sigma (B,)."""
        c = self.coefficients(sigma)
        return network(wide(c.c_in, x) * x, c.c_noise.float(), label)

    def assemble(self, f: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """x0 from the network's answer f, shapes of x (B, C, *S); dtype of x."""
        c = self.coefficients(sigma)
        return wide(c.c_skip, x) * x + wide(c.c_out, x) * f.to(x.dtype)

    def target(self, x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """What the network should answer for x = x0 + sigma eps; shape of x0."""
        c = self.coefficients(sigma)
        noise = sigma.double().view(-1, *[1] * (c.c_skip.ndim - 1))
        return wide(c.c_data / c.c_out, x0) * x0 - wide(c.c_skip * noise / c.c_out, x0) * eps

    def weight(self, sigma: Tensor, min_snr_gamma: float = 0.0) -> Tensor:
        """Weight (B,) or (B, C) float64 on the network's squared error; 1 unless min_snr_gamma > 0.

        Hang 2023: min(SNR, gamma) on the error of x0, SNR = 1 / sigma^2; times c_out^2 for the
        network's own (for epsilon that is min(SNR, gamma) / SNR).
        """
        if min_snr_gamma < 0:
            raise VerisimError(f"min_snr_gamma = {min_snr_gamma:g}: it must be 0 (off) or positive, e.g. 5.")
        if min_snr_gamma == 0:
            return torch.ones_like(sigma, dtype=torch.float64)
        c_out = self.coefficients(sigma).c_out
        snr = (sigma.double() ** -2).view(-1, *[1] * (c_out.ndim - 1))
        return c_out**2 * snr.clamp(max=min_snr_gamma)

    def loss(
        self,
        network: Network,
        x0: Tensor,  # clean images (B, C, *S)
        eps: Tensor,  # standard normal noise, same shape
        sigma: Tensor,  # (B,)
        label: Tensor | None = None,  # (B,) int64
        min_snr_gamma: float = 0.0,  # 0 = off
        pixels: Tensor | None = None,  # weights, broadcastable to x0, whose mean per sample is 1; None = 1
    ) -> Tensor:
        """Weighted mean squared error of the network's answer per sample, (B,)."""
        f = self.answer(network, x0 + wide(sigma, x0) * eps, sigma, label).to(x0.dtype)
        return self.error(f, x0, eps, sigma, min_snr_gamma, pixels)

    def error(
        self,
        f: Tensor,  # the network's answer, shape of x0
        x0: Tensor,
        eps: Tensor,
        sigma: Tensor,  # (B,)
        min_snr_gamma: float = 0.0,
        pixels: Tensor | None = None,
    ) -> Tensor:
        """The loss of an answer that was given, (B,)."""
        square = (f - self.target(x0, eps, sigma)).square()
        if pixels is not None:
            square = square * pixels
        weight = self.weight(sigma, min_snr_gamma)
        if weight.ndim > 1:
            return (wide(weight, square) * square).flatten(1).mean(1)
        return weight.to(x0.dtype) * square.flatten(1).mean(1)


def step_number(sigma: Tensor, table: Tensor) -> Tensor:
    """The training step 0...T - 1 of a noise level, linear in ln sigma between steps; (B,) float64.

    table (T,): increasing sigma of steps 0...T - 1. Levels outside of it count as its first or last.
    """
    if len(table) == 1:
        return torch.zeros_like(sigma)
    log, log_table = sigma.log(), table.log()
    right = torch.searchsorted(log_table, log).clamp(1, len(table) - 1)
    a, b = log_table[right - 1], log_table[right]
    return (right - 1) + ((log - a) / (b - a)).clamp(0, 1)


def wide(c: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), or (B, C) -> (B, C, 1, ..., 1), in the dtype of x."""
    return c.to(x.dtype).view(*c.shape, *[1] * (x.ndim - c.ndim))
