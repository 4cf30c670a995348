"""What a pixel's grey level is distributed like, given the network's numbers: two output heads.

A head owns no weights. It reads `params` (..., P) and knows the exact probability of every grey level
0 ... levels - 1, and how to turn uniform random numbers into a grey level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.errors import VerisimError

UNIFORMS = 2  # uniform random numbers that every head takes for one pixel
TINY = 2.0**-25  # keeps log(u) and log(1 - u) finite; below the step of a float32 uniform
CEILING = 12.0  # largest raw log scale above the floor: flatter than any image, and safe to differentiate


class Head(Protocol):
    """Distribution of one grey level."""

    @property
    def levels(self) -> int:
        """Number of grey levels."""
        ...

    @property
    def channels(self) -> int:
        """P, how many numbers the network gives for one pixel."""
        ...

    def log_prob(self, params: Tensor, level: Tensor) -> Tensor:
        """log p(level), natural logarithm: params (..., P), level (...) int64 -> (...)."""
        ...

    def draw(self, params: Tensor, u: Tensor, temperature: float) -> Tensor:
        """Grey levels (B,) int64 from params (B, P) and uniforms u (B, 2) in [0, 1)."""
        ...


def log_probs(head: Head, params: Tensor) -> Tensor:
    """log p of all grey levels: params (..., P) -> (..., levels)."""
    every = torch.arange(head.levels, device=params.device).expand(*params.shape[:-1], head.levels)
    return head.log_prob(params[..., None, :].expand(*every.shape, -1), every)


def quantise(x: Tensor, levels: int) -> Tensor:
    """Images in [-1, 1] -> grey levels 0 ... levels - 1 (int64) by rounding; 256 is an 8-bit file."""
    return ((x.clamp(-1, 1) + 1) * ((levels - 1) / 2)).round().long()


def dequantise(level: Tensor, levels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Grey levels -> values in [-1, 1]."""
    return level.to(dtype) * (2 / (levels - 1)) - 1


def inverse_cdf(weight: Tensor, u: Tensor) -> Tensor:
    """Index (B,) drawn from non-negative weights (B, N) by u (B,): the first whose cumulative sum > u."""
    total = weight.cumsum(-1)  # (B, N)
    return (total <= u[:, None] * total[:, -1:]).sum(-1).clamp(max=weight.shape[-1] - 1)


@dataclass(frozen=True)
class Categorical:
    """Softmax over the grey levels: no order among them (source 004, section 3 A, `ar_literal`)."""

    levels: int = 256

    @property
    def channels(self) -> int:
        return self.levels

    def log_prob(self, params: Tensor, level: Tensor) -> Tensor:
        return params.log_softmax(-1).gather(-1, level[..., None]).squeeze(-1)

    def draw(self, params: Tensor, u: Tensor, temperature: float) -> Tensor:
        return inverse_cdf((params / temperature).softmax(-1), u[:, 0])


@dataclass(frozen=True)
class LogisticMixture:
    """Mixture of K logistic densities, integrated over each grey level's bin (PixelCNN++, equation 2).

    In units of one grey level: a component with mean m and scale s gives bin k the probability
    sigmoid((k + 1/2 - m) / s) - sigmoid((k - 1/2 - m) / s); the outer bins take the tails.
    """

    components: int = 10  # K
    levels: int = 256  # number of grey levels
    floor: float = math.log(0.05)  # smallest log scale, log grey levels: all mass in one bin

    def __post_init__(self) -> None:
        if self.components < 1 or self.levels < 2:
            raise VerisimError(
                f"A logistic mixture of {self.components} components over {self.levels} grey levels cannot "
                "be built. Use components >= 1 and levels >= 2 (256 for 8-bit images)."
            )

    @property
    def channels(self) -> int:
        return 3 * self.components

    def split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """params (..., 3K) -> log weight, mean and log scale (grey levels), each (..., K)."""
        logit, mean, raw = params.unflatten(-1, (3, self.components)).unbind(-2)
        half = (self.levels - 1) / 2
        return logit.log_softmax(-1), (mean + 1) * half, self.floor + F.softplus(raw.clamp(max=CEILING))

    def initial_bias(self) -> Tensor:
        """(3K,) parameters of a broad start: means spread over all grey levels, scales to match."""
        k = self.components
        mean = torch.linspace(-1, 1, 2 * k + 1)[1::2]
        width = max(math.log(self.levels / (2 * k)) - self.floor, 0.5)
        return torch.cat([torch.zeros(k), mean, torch.full((k,), math.log(math.expm1(width)))])

    def log_prob(self, params: Tensor, level: Tensor) -> Tensor:
        log_weight, mean, log_scale = self.split(params)  # (..., K)
        inverse = torch.exp(-log_scale)
        upper = (level[..., None] + 0.5 - mean) * inverse  # right edge of the bin
        lower = (level[..., None] - 0.5 - mean) * inverse  # left edge
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no cancellation, and a - b is
        # the bin's width 1 / s whatever the mean. The outer bins drop the factor of their open side.
        first, last = (level == 0)[..., None], (level == self.levels - 1)[..., None]
        left = F.logsigmoid(upper).masked_fill(last, 0)
        right = F.logsigmoid(-lower).masked_fill(first, 0)
        both = torch.log(-torch.expm1(-inverse)).masked_fill(first | last, 0)
        return torch.logsumexp(log_weight + left + right + both, -1)

    def draw(self, params: Tensor, u: Tensor, temperature: float) -> Tensor:
        """Component by u[:, 0], then logistic quantile of u[:, 1], rounded into its bin: exact at
        temperature 1. Temperature T divides the log weights and multiplies the scales."""
        log_weight, mean, log_scale = self.split(params)  # (B, K)
        k = inverse_cdf((log_weight / temperature).softmax(-1), u[:, 0])[:, None]
        v = u[:, 1].to(mean.dtype).clamp(TINY, 1 - 2.0**-24)
        scale = log_scale.gather(1, k).squeeze(1).exp() * temperature
        x = mean.gather(1, k).squeeze(1) + scale * (v.log() - torch.log1p(-v))  # logistic quantile
        return x.round().clamp(0, self.levels - 1).long()
