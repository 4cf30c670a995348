"""The two players of adversarial diffusion: a generator of x0 and a critic of one step. Spec 003, section 17-D.

Both know the noise level and, where there are labels, the class. The generator also takes a latent z: several
clean images may lie behind one very noisy image, and z says which.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.errors import VerisimError
from verisim.models.adversarial.networks import MinibatchStd
from verisim.models.diffusion.backbones import on_any_size
from verisim.nets.blocks import AVG_POOL, Block, NoiseEmbedding, convolution
from verisim.nets.unet import UNet


class LatentMapping(nn.Module):
    """z (B, Z) -> style (B, V): unit length per feature, then a perceptron (Karras 2019, section 2)."""

    def __init__(self, latent: int, width: int, layers: int) -> None:
        super().__init__()
        sides = [latent, *[width] * layers]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(sides)])

    def forward(self, z: Tensor) -> Tensor:
        z = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            z = F.silu(layer(z))
        return z


class StepGenerator(nn.Module):
    """x_i (B, C, *S), its level, z (B, Z) [, class (B,)] -> x0 (B, C, *S) in (-1, 1), for images of any size."""

    def __init__(self, unet: UNet, latent: int, style: int, layers: int) -> None:
        super().__init__()
        self.unet = unet  # built with vector=style
        assert unet.embedding.vector is not None
        branches = [b.conv2 for b in unet.modules() if isinstance(b, Block)]
        for layer in (unet.conv_out, unet.embedding.vector, *branches):  # a denoiser starts with 0 there;
            nn.init.normal_(layer.get_parameter("weight"), std=0.02)  # here z and level must count at once
        self.mapping = LatentMapping(latent, style, layers)

    def forward(self, x: Tensor, told: Tensor, z: Tensor, label: Tensor | None = None) -> Tensor:
        style = self.mapping(z)

        def net(x: Tensor, c_noise: Tensor, label: Tensor | None) -> Tensor:
            return self.unet(x, c_noise, label, vector=style)

        return torch.tanh(on_any_size(net, self.unet.stride, nullcontext(), x, told, label))


class CriticBlock(nn.Module):
    """Residual block that adds the embedding and halves the image."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, embedding: int, slope: float) -> None:
        super().__init__()
        self.conv1 = convolution(dims, in_channels, out_channels)
        self.conv2 = convolution(dims, out_channels, out_channels)
        self.shortcut = convolution(dims, in_channels, out_channels, kernel=1)
        self.level = nn.Linear(embedding, out_channels)
        self.dims, self.slope = dims, slope

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(x, self.slope))
        h = h + self.level(emb).view(*h.shape[:2], *[1] * self.dims)
        h = self.conv2(F.leaky_relu(h, self.slope))
        return AVG_POOL[self.dims]((h + self.shortcut(x)) * 0.5**0.5, 2)


class StepCritic(nn.Module):
    """x_{i-1}, x_i (B, C, *S), the level of x_i [, class (B,)] -> logit (B,): is x_{i-1} what came before x_i?"""

    def __init__(
        self,
        spatial_dims: int,  # 2 or 3
        channels: int,  # C
        size: tuple[int, ...],  # S; halved once per width but the first
        widths: tuple[int, ...],  # channels at entry and after each halving
        slope: float = 0.2,  # of LeakyReLU
        num_classes: int = 0,  # 0 = unconditional
    ) -> None:
        super().__init__()
        halvings = len(widths) - 1
        if halvings < 1 or min(size) < 2**halvings:
            raise VerisimError(
                f"Critic: images of {'x'.join(map(str, size))} cannot be halved {halvings} times. critic_channels "
                f"takes 2 to {1 + min(size).bit_length() - 1} widths here."
            )
        embedding = 4 * widths[0]
        self.embedding = NoiseEmbedding(embedding, "sinusoidal", 2 * widths[0], num_classes)
        self.entry = convolution(spatial_dims, 2 * channels, widths[0], kernel=1)
        self.blocks = nn.ModuleList(
            [CriticBlock(spatial_dims, a, b, embedding, slope) for a, b in pairwise(widths)]
        )
        self.spread = MinibatchStd()
        self.last = convolution(spatial_dims, widths[-1] + 1, widths[-1])
        self.head = nn.Linear(widths[-1], 1)
        self.slope, self.num_classes = slope, num_classes

    def forward(self, before: Tensor, after: Tensor, told: Tensor, label: Tensor | None = None) -> Tensor:
        if self.num_classes and label is None:
            label = torch.full((len(before),), self.num_classes, device=before.device)
        emb = self.embedding(told, label)
        h = self.entry(torch.cat([before, after], dim=1))
        for block in self.blocks:
            h = block(h, emb)
        h = F.leaky_relu(self.last(self.spread(h)), self.slope)
        return self.head(h.flatten(2).sum(2)).flatten().float()
