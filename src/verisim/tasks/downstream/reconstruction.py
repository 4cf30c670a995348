"""Autoencoders that know normal images alone: what they cannot restore is abnormal; and a classifier of what is left.

    x^ = f(x),   loss = score = mean |x - x^|^2       reconstruction
    y^ = CNN((x - x^) / 2)                            residual

Spec 004, section 1. The autoencoder is that of verisim.models.autoencoders.trunk. Ours: the residual classifier never
learns from an image that taught its autoencoder. Half of the normal images (whole patients) go to the autoencoder, all
others to the classifier. Were they the same, it would learn that the autoencoder knows the normal ones by heart, and
even shuffled labels would give an AUC above 0.5: what is hard to redraw would look like what was not seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from verisim.data.spec import Images, ImageSpec
from verisim.devices import lent
from verisim.metrics.judges import fit, split_groups
from verisim.metrics.utility import check_labels
from verisim.models.autoencoders.trunk import Decoder, Encoder, trunk_channels
from verisim.seeding import generator as seeded
from verisim.tasks.downstream.base import (
    DownstreamSettings,
    built,
    descend,
    normal_images,
    squared_error,
)

CHUNK = 256  # images per forward pass


class Autoencoder(nn.Module):
    """Image (B, C, *S) -> code (B, latent) -> (B, out_channels, *S), without a final non-linearity."""

    def __init__(
        self,
        spec: ImageSpec,
        width: int,  # channels of the first convolution; at most four times as many later on
        latent: int,  # length of the code
        out_channels: int,
    ) -> None:
        super().__init__()
        channels = trunk_channels(spec.size, width, 4 * width)
        self.encoder = Encoder(spec.size, spec.channels, channels, latent, 3, True)
        self.decoder = Decoder(spec.size, out_channels, channels, latent, 3, True)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class ReconstructionError(nn.Module):
    """(B, C, *S) -> (B,): mean squared error of an autoencoder."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor) -> Tensor:
        return squared_error(x, self.autoencoder(x))


class ResidualClassifier(nn.Module):
    """(B, C, *S) -> logits (B, K) of what an autoencoder leaves over."""

    def __init__(self, autoencoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.autoencoder, self.classifier = autoencoder, classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(residual(self.autoencoder, x))


def residual(autoencoder: nn.Module, x: Tensor) -> Tensor:
    """(x - x^) / 2, in [-1, 1] where both images are."""
    return (x - autoencoder(x)) / 2


def fit_autoencoder(x: Tensor, spec: ImageSpec, settings: DownstreamSettings, seed: int) -> Autoencoder:
    """An autoencoder of normal images x (M, C, *S), trained by squared error."""
    net = built(lambda: Autoencoder(spec, settings.width, settings.latent, spec.channels), seed)
    return descend(net, lambda b: squared_error(b, net(b)).mean(), x, settings, seed)


def fit_reconstruction(
    images: Images, normal: int | None, settings: DownstreamSettings, seed: int
) -> ReconstructionError:
    """Reconstruction-error detector; scores (B,)."""
    x = normal_images(images, normal)
    return ReconstructionError(fit_autoencoder(x, images.spec, settings, seed)).eval()


def fit_residual(
    images: Images, normal: int | None, settings: DownstreamSettings, seed: int
) -> ResidualClassifier:
    """The small judge on residual images, with labels of all classes; logits (B, K)."""
    labels = check_labels(images, "training set")
    mine, others = halves(images, normal, seed)
    autoencoder = fit_autoencoder(images.pixels[mine].float(), images.spec, settings, seed)
    rest = images.subset(others)
    assert rest.labels is not None
    with torch.no_grad(), lent(autoencoder) as device:
        parts = rest.pixels.float().split(CHUNK)
        left = torch.cat([residual(autoencoder, part.to(device)).cpu() for part in parts])
    judge = fit(left, rest.labels, int(labels.max()) + 1, settings.judge, seed, rest.patients)
    return ResidualClassifier(autoencoder, judge).eval()


def halves(images: Images, normal: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of half of the normal images, and of all other images; no patient's normal images are in both."""
    normal_images(images, normal)  # are there enough?
    assert images.labels is not None and normal is not None
    healthy = (images.labels == normal).nonzero().flatten()
    groups = None if images.patients is None else [images.patients[i] for i in healthy.tolist()]
    _, held = split_groups(len(healthy), 0.5, seeded("residual", seed), groups)
    mine = torch.zeros(len(images), dtype=torch.bool)
    mine[healthy[held]] = True
    return mine.nonzero().flatten(), (~mine).nonzero().flatten()
