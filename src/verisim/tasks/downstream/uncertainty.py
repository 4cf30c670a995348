"""An autoencoder that also says how sure it is of each pixel, so that organ borders raise no false alarms.

    (mu, log s^2) = f(x)
    loss  = mean 1/2 [ (x - mu)^2 / s^2 + log s^2 ]       Gaussian NLL per pixel, but for a constant
    score = mean (x - mu)^2 / s^2                         error in units of the variance expected there

Spec 004, section 1. Ours: s between one grey level of 256 and the half range of grey values, by a sigmoid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from verisim.data.spec import Images
from verisim.tasks.downstream.base import DownstreamSettings, built, descend, normal_images
from verisim.tasks.downstream.reconstruction import Autoencoder

LOG_VARIANCE = (2 * math.log(2 / 255), 0.0)  # of images in [-1, 1]


class NormalisedError(nn.Module):
    """(B, C, *S) -> (B,), of a network with outputs (B, 2C, *S): mean and unbounded log variance."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log s^2, each (B, C, *S)."""
        mean, raw = self.autoencoder(x).chunk(2, 1)
        low, high = LOG_VARIANCE
        return mean, low + (high - low) * torch.sigmoid(raw)

    def forward(self, x: Tensor) -> Tensor:
        return normalised_error(x, *self.moments(x))


def normalised_error(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """mean (x - mu)^2 / s^2 (B,); 1 where every pixel is one standard deviation off."""
    return ((x - mean).square() * (-log_variance).exp()).flatten(1).mean(1)


def gaussian_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Nats per value (B,), without the constant 1/2 log 2 pi."""
    return 0.5 * (normalised_error(x, mean, log_variance) + log_variance.flatten(1).mean(1))


def fit_uncertainty(
    images: Images, normal: int | None, settings: DownstreamSettings, seed: int
) -> NormalisedError:
    """Uncertainty autoencoder of the normal images; scores (B,)."""
    x, spec = normal_images(images, normal), images.spec
    make = lambda: Autoencoder(spec, settings.width, settings.latent, 2 * spec.channels)  # noqa: E731
    net = NormalisedError(built(make, seed))
    return descend(net, lambda b: gaussian_nll(b, *net.moments(b)).mean(), x, settings, seed)
