"""Fully connected generator and discriminator: the GAN as first proposed (Goodfellow 2014), for images of any size.

Three hidden layers each, LeakyReLU, no normalisation. A class enters as an embedding beside the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec

DEPTH = 3  # hidden layers


def perceptron(inputs: int, hidden: int, outputs: int, slope: float) -> nn.Sequential:
    """inputs -> DEPTH hidden layers -> outputs."""
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(inputs, hidden), nn.LeakyReLU(slope)]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class DenseGenerator(nn.Module):
    """z (B, latent) [, class (B,)] -> image (B, C, *S) in (-1, 1)."""

    def __init__(
        self,
        spec: ImageSpec,
        latent: int,  # length of z
        hidden: int,  # units of a hidden layer
        slope: float,  # of LeakyReLU
        num_classes: int = 0,  # 0 = unconditional
        embed: int = 32,  # length of a class embedding
    ) -> None:
        super().__init__()
        self.shape = spec.shape
        self.embedding = nn.Embedding(num_classes, embed) if num_classes else None
        self.layers = perceptron(latent + (embed if num_classes else 0), hidden, spec.dims, slope)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(label)], dim=1)
        return torch.tanh(self.layers(z).float()).view(-1, *self.shape)


class DenseDiscriminator(nn.Module):
    """Image (B, C, *S) [, class (B,)] -> logit (B,)."""

    def __init__(
        self,
        spec: ImageSpec,
        hidden: int,  # units of a hidden layer
        slope: float,  # of LeakyReLU
        num_classes: int = 0,  # 0 = unconditional
        embed: int = 32,  # length of a class embedding
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, embed) if num_classes else None
        self.layers = perceptron(spec.dims + (embed if num_classes else 0), hidden, 1, slope)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        x = x.flatten(1)
        if self.embedding is not None:
            x = torch.cat([x, self.embedding(label)], dim=1)
        return self.layers(x).flatten().float()
