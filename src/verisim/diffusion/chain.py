"""The discrete chain x_T -> ... -> x_1 -> x_0 and its variational bound. Ho 2020, eq. 5; Nichol 2021.

On levels t > s, with x = x0 + t eps and r = (s / t)^2:

    q(x_s | x_t, x0) = N(x0 + r (x_t - x0), s^2 (1 - r))                    the posterior of the noise
    p(x_s | x_t)     = N(D  + r (x_t - D),  exp(v log upper + (1 - v) log lower))      Nichol 2021, eq. 15

`lower` is that posterior's variance (beta-tilde: best for data without spread), `upper` is beta (best for
data of unit variance). A KL divergence does not change when x is scaled by a function of the level, so
these are the terms of the variance-preserving chain of the same signal-to-noise ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from verisim.diffusion.likelihood import grey_value_nats, quantise
from verisim.diffusion.schedules import check_sigmas
from verisim.diffusion.stepping import Callback, Denoise, Step, check_finite, draw_noise, noise_source, steps
from verisim.errors import VerisimError

Reverse = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (x, sigma) -> (x0, v), both (B, C, *S)


class Variances(NamedTuple):
    """log of the least and the largest reverse variance of each step, (n,) float64 each, noisiest first."""

    lower: Tensor
    upper: Tensor


class ChainBound(NamedTuple):
    """Parts of the bound in bits per dimension, float64."""

    prior: Tensor  # L_T, (B,)
    steps: Tensor  # L_{t-1} of the steps to a level above 0, noisiest first, (B, n - 1)
    last: Tensor  # L_0, (B,)

    @property
    def total(self) -> Tensor:
        return self.prior + self.steps.sum(1) + self.last


def variances(sigmas: Tensor) -> Variances:
    """The range of reverse variances of a schedule (n + 1,).

    The last step's posterior has variance 0; Nichol 2021 takes the one before it there (for a chain of
    one step: beta).
    """
    t, s = check_sigmas(sigmas)[:-1], sigmas[1:]
    upper = (t**2 - s**2) * (1 + s**2) / (1 + t**2)  # beta, seen at the scale of x_s
    lower = s**2 * (1 - (s / t) ** 2)  # beta-tilde
    lower[-1] = lower[-2] / (1 + s[-2] ** 2) if len(t) > 1 else upper[-1]
    return Variances(lower.log(), upper.log())


def fixed_variance(denoise: Denoise, v: float = 0.0) -> Reverse:
    """A denoiser with a constant v: 0 = beta-tilde, 1 = beta."""
    return lambda x, sigma: (denoise(x, sigma), torch.full_like(x, v))


def ancestral(
    reverse: Reverse,
    x: Tensor,  # sigmas[0] * standard normal noise, (B, C, *S)
    sigmas: Tensor,  # (n + 1,)
    *,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw from p(x_s | x_t) step by step, exactly respaced; n evaluations. With v = 0 this is `ddpm`."""
    generator = noise_source(generator, x)
    lower, upper = variances(sigmas)
    for i, (t, s) in enumerate(steps(sigmas)):
        x0, v = reverse(x, x.new_full((len(x),), t))
        check_finite(x0, t)
        if callback is not None:
            callback(Step(i, t, x, x0))
        x = x0 + (s / t) ** 2 * (x - x0)
        if s > 0:
            std = torch.exp(0.5 * (v * float(upper[i]) + (1 - v) * float(lower[i])))
            x = x + std * draw_noise(x, generator)
    return x


@torch.no_grad()
def chain_bound(
    reverse: Reverse,  # a denoiser with its variance; fixed_variance(denoise) for a plain one
    x: Tensor,  # (B, C, *S) in [-1, 1]
    sigmas: Tensor,  # (n + 1,)
    *,
    grey_values: bool = True,  # True: 8-bit images, probabilities; False: real numbers, densities
    prior_std: float = 1.0,  # p(x_T) = N(0, sigma_T^2 + prior_std^2); 1 = the N(0, I) of the VP chain
    generator: torch.Generator | None = None,
) -> ChainBound:
    """Upper bound on -log2 p(x) per dimension by the discrete chain; n evaluations per image."""
    if not (math.isfinite(prior_std) and prior_std > 0):
        raise VerisimError(f"prior_std = {prior_std:g}: it must be positive and finite, e.g. 1.")
    generator = noise_source(generator, x)
    x = quantise(x) if grey_values else x
    n, bits = len(sigmas) - 1, 1 / (x[0].numel() * math.log(2))
    parts = []
    for i in range(n):
        t = x.new_full((len(x),), float(sigmas[i]))
        x0, v = reverse(x + float(sigmas[i]) * draw_noise(x, generator), t)
        parts.append(bits * step_nats(x, x0, v, sigmas, torch.full((len(x),), i), grey_values))
    total = float(sigmas[0]) ** 2 + prior_std**2
    ratio = float(sigmas[0]) ** 2 / total
    prior = 0.5 * (x.double().square() / total + ratio - 1 - math.log(ratio)).flatten(1).sum(1)
    return ChainBound(bits * prior, torch.stack(parts, 1)[:, :-1], parts[-1])


def step_nats(
    x: Tensor,  # clean images (B, C, *S)
    x0: Tensor,  # the denoiser's estimate of them, same shape
    v: Tensor,  # interpolation of the log variance, same shape
    sigmas: Tensor,  # (n + 1,)
    i: Tensor,  # (B,) int64, which step sigmas[i] -> sigmas[i + 1]
    grey_values: bool = True,
) -> Tensor:
    """KL(q(x_s | x_t, x) || p(x_s | x_t)), and -log p(x | x_1) where s = 0; (B,) float64 nats."""
    where = i.cpu()
    table = torch.stack([*variances(sigmas), sigmas[:-1].cpu(), sigmas[1:].cpu()])[:, where]  # (4, B) float64
    lower, upper, t, s = table.to(x.device).view(4, len(x), *[1] * (x.ndim - 1))
    log_p = v.double() * upper + (1 - v.double()) * lower
    shift = (1 - (s / t) ** 2) * (x.double() - x0.double())  # of the means
    nats = 0.5 * (log_p - lower - 1 + torch.exp(lower - log_p) + shift**2 / log_p.exp()).flatten(1).sum(1)
    last = i == len(sigmas) - 2
    if not last.any():
        return nats
    rows = last.nonzero().flatten().to(x.device)
    a, centre, log = x[rows], x0[rows].double(), log_p.expand(x.shape)[rows]
    if grey_values:
        end = grey_value_nats(a, centre, torch.exp(0.5 * log))
    else:
        end = 0.5 * (math.log(2 * math.pi) + log + (a.double() - centre) ** 2 / log.exp()).flatten(1).sum(1)
    return nats.index_copy(0, rows, end)
