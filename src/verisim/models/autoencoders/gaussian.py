"""The Gaussian latent that variational autoencoders share: KL divergence, sampling, evidence bound.

Source 001 section 6 S1 (with the sign of its KL corrected), source 004 section 3 V; importance-weighted
bound: Burda et al. 2016, eq. 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
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


def normal_log_density(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_variance)) in nats, float64 (B,); all arguments (B, d)."""
    z, mean, log_variance = z.double(), mean.double(), log_variance.double()
    square = (z - mean).square() * (-log_variance).exp()
    return -0.5 * (square + log_variance + math.log(2 * math.pi)).sum(1)


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
