"""Data whose optimal denoiser is known: what every sampler and bound is checked against.

Values are independent and identically distributed, so the same denoiser serves any shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """A one-dimensional Gaussian mixture for every value of x (B, ...)."""

    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...]  # sum to 1

    @property
    def mean(self) -> float:
        return sum(w * m for w, m in zip(self.weights, self.means))

    @property
    def std(self) -> float:
        second = sum(w * (m * m + s * s) for w, m, s in zip(self.weights, self.means, self.stds))
        return math.sqrt(second - self.mean**2)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x0 + sigma eps = x], exact; x (B, ...), sigma (B,)."""
        sigma = sigma.view(-1, *[1] * (x.ndim - 1))
        logits, posterior = [], []
        for m, s, w in zip(self.means, self.stds, self.weights):
            total = s * s + sigma**2
            logits.append(math.log(w) - 0.5 * total.log() - 0.5 * (x - m) ** 2 / total)
            posterior.append(m + s * s / total * (x - m))
        if len(logits) == 1:
            return posterior[0]
        r = torch.stack(logits).softmax(0)  # (K, B, ...) responsibilities
        return (r * torch.stack(posterior)).sum(0)

    def cdf(self, x: Tensor) -> Tensor:
        """P(X <= x), float64."""
        x = x.double()
        total = torch.zeros_like(x)
        for m, s, w in zip(self.means, self.stds, self.weights):
            total += w * torch.special.ndtr((x - m) / s)
        return total

    def quantiles(self, n: int) -> Tensor:
        """The quantiles (i + 1/2) / n, i = 0...n-1, (n,) float64, by bisection."""
        q = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        spread = 12 * max(self.stds)
        low = torch.full_like(q, min(self.means) - spread)
        high = torch.full_like(q, max(self.means) + spread)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self.cdf(middle) < q
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def wasserstein(self, x: Tensor) -> float:
        """W2 distance of samples x (any shape) from the mixture; infinite if x is not finite."""
        x = x.double().flatten()
        if not torch.isfinite(x).all():
            return math.inf
        return float((x.sort().values - self.quantiles(len(x))).square().mean().sqrt())


def gaussian(mean: float, std: float) -> Mixture:
    """Data N(mean, std^2) in every value."""
    return Mixture((mean,), (std,), (1.0,))
