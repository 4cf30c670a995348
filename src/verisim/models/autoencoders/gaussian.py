"""The Gaussian latent that variational autoencoders share: KL divergence, sampling, evidence bound.

Source 001 section 6 S1 (with the sign of its KL corrected), source 004 section 3 V; importance-weighted
bound: Burda et al. 2016, eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from verisim.errors import VerisimError

LOG_VARIANCE_RANGE = (-15.0, 8.0)  # beyond it exp() says nothing new and float32 suffers
Net = TypeVar("Net", bound=nn.Module)
CHUNK = 64  # images per forward pass when encoding or decoding many


def kl_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_variance)) || N(0, I)) in nats per latent (B, d).

    -1/2 (1 + log s^2 - mu^2 - s^2); float32 whatever the autocast type.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp())


def clamped(
    log_variance: Tensor, low: float = LOG_VARIANCE_RANGE[0], high: float = LOG_VARIANCE_RANGE[1]
) -> tuple[Tensor, Tensor]:
    """Log variances (B, ...) kept in [low, high], and how many per image (B,) were outside it or NaN.

    NaN stays NaN: the loss is then not finite and the step is skipped.
    """
    inside = log_variance.clamp(low, high)
    return inside, (inside != log_variance).flatten(1).sum(1)


@dataclass(frozen=True)
class Posterior:
    """q(z | x) = N(mean, diag exp(log_variance)) of a batch of images, float32."""

    mean: Tensor  # (B, d)
    log_variance: Tensor  # (B, d)
    clamped: Tensor  # (B,) number of log variances that had to be clamped

    @classmethod
    def from_features(cls, features: Tensor) -> Posterior:
        """(B, 2 d) encoder outputs: the means, then the log variances, clamped to LOG_VARIANCE_RANGE."""
        mean, log_variance = features.float().chunk(2, dim=1)
        return cls(mean, *clamped(log_variance))

    def draw(self) -> Tensor:
        """z = mu + sigma * eps, eps ~ N(0, I), (B, d); differentiable in mu and sigma."""
        return self.mean + (0.5 * self.log_variance).exp() * torch.randn_like(self.mean)

    def placed(self, generator: torch.Generator) -> Tensor:
        """The same (B, d) with eps from a generator of any device."""
        eps = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + (0.5 * self.log_variance).exp() * eps.to(self.mean.device)

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) in nats per latent (B, d)."""
        return kl_standard_normal(self.mean, self.log_variance)

    def rate(self) -> Tensor:
        """KL(q || N(0, I)) in nats per image (B,)."""
        return self.kl().sum(1)

    def parts(self, rate: Tensor | None = None) -> dict[str, Tensor]:
        """What is logged beside the distortion: rate in nats and in bits per image, clamped log variances.

        rate: (B,) that under another prior than N(0, I).
        """
        rate = self.rate() if rate is None else rate
        return {"kl": rate, "rate_bits": rate / math.log(2), "clamped": self.clamped}


class PointPosterior(Posterior):
    """All mass on the mean, as in a plain autoencoder: no noise, and a rate of 0 by definition."""

    @classmethod
    def from_features(cls, features: Tensor) -> PointPosterior:
        """(B, d) encoder outputs: the means."""
        mean = features.float()
        return cls(mean, torch.full_like(mean, -torch.inf), mean.new_zeros(len(mean)))

    def kl(self) -> Tensor:
        return torch.zeros_like(self.mean)


@contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Passes through `modules` inside this block give their parameters no gradient, their inputs do get it.

    Decided when the pass runs, so one backward pass may hold frozen and ordinary passes of one module.
    """
    held = [p for m in modules if m is not None for p in m.parameters() if p.requires_grad]
    for p in held:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


def normal_log_density(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_variance)) in nats, float64 (B,); all arguments (B, d), or of shapes (..., d) that fit."""
    z, mean, log_variance = z.double(), mean.double(), log_variance.double()
    square = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (square + log_variance + math.log(2 * math.pi)).sum(-1)


def importance_bound(log_weights: Tensor) -> Tensor:
    """log 1/K sum_k w_k of log weights (K, B): a lower bound of log p(x) (B,) in expectation.

    w_k = p(x | z_k) p(z_k) / q(z_k | x) with z_k ~ q. K = 1 is the ELBO; more samples tighten it.
    """
    return torch.logsumexp(log_weights, dim=0) - math.log(len(log_weights))


def check_temperature(temperature: float) -> None:
    """VerisimError for a negative standard deviation of the latent."""
    if not temperature >= 0:
        raise VerisimError(
            f"temperature {temperature:g}: it multiplies the standard deviation of the latent, so it must "
            f"be 0 or more. 1 is what the model was trained with."
        )


def fresh_generator() -> torch.Generator:
    """A generator nobody can predict, for callers who gave none."""
    generator = torch.Generator()
    generator.seed()
    return generator


@contextmanager
def evaluating(net: Net) -> Iterator[Net]:
    """`net` in evaluation mode, put back as it was afterwards."""
    was = net.training
    net.eval()
    try:
        yield net
    finally:
        net.train(was)
