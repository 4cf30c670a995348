"""The networks of a VQ-VAE: a trunk whose latent stays a grid of vectors, and the codebook between.

The trunk is that of source 001, section 3: strided stem, then residual blocks that halve the image; a 1x1
convolution to D channels and one back stand where a VAE has its linear layers (section 6 S6).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.autoencoders.likelihoods import GaussianObservation
from verisim.models.autoencoders.trunk import CONV, TRANSPOSED, Down, Up, padded
from verisim.models.autoregressive.code_prior import CodePrior
from verisim.nets.quantiser import VectorQuantiser


def grid_of(size: tuple[int, ...], halvings: int) -> tuple[int, ...]:
    """Positions per axis of the latent grid, for images padded to multiples of 2^halvings."""
    if len(size) not in CONV or min(size) < 2**halvings:
        need = 2**halvings
        fits = "x".join(str(max(n, need)) for n in size[:3]) if len(size) in CONV else f"{need}x{need}"
        raise VerisimError(
            f"Images of {'x'.join(map(str, size))} pixels cannot be halved {halvings} times: a VQ-VAE with "
            f"{halvings} entries in `channels` needs 2 or 3 axes of at least {need} pixels. Give fewer "
            f"channels, or images of {fits}."
        )
    return tuple(n // 2**halvings for n in padded(size, halvings))


class GridEncoder(nn.Module):
    """Image (B, C, *S) -> latent grid (B, D, *G); sizes that do not divide are padded by edge values."""

    def __init__(
        self,
        size: tuple[int, ...],  # S in pixels
        in_channels: int,  # C
        channels: tuple[int, ...],  # of the stem and of each residual block; one per halving
        dim: int,  # D
        kernel: int,  # of the stride-1 convolutions
        use_norm: bool,  # group norm after each convolution of a block
    ) -> None:
        super().__init__()
        dims, full = len(size), padded(size, len(channels))
        self.pad = [p for n, m in zip(size[::-1], full[::-1]) for p in ((m - n) // 2, m - n - (m - n) // 2)]
        stem = nn.Sequential(CONV[dims](in_channels, channels[0], 4, 2, 1), nn.LeakyReLU(0.2))
        blocks = [Down(dims, a, b, kernel, use_norm) for a, b in pairwise(channels)]
        self.layers = nn.Sequential(stem, *blocks, CONV[dims](channels[-1], dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(F.pad(x, self.pad, mode="replicate") if any(self.pad) else x)


class GridDecoder(nn.Module):
    """Latent grid (B, D, *G) -> image-shaped output (B, C, *S), without a final non-linearity."""

    def __init__(
        self,
        size: tuple[int, ...],  # S in pixels
        out_channels: int,  # C
        channels: tuple[int, ...],  # of the encoder; used in reverse
        dim: int,  # D
        kernel: int,  # of the stride-1 convolutions
        use_norm: bool,  # group norm after each convolution of a block
    ) -> None:
        super().__init__()
        dims, full, back = len(size), padded(size, len(channels)), channels[::-1]
        self.size, self.full, self.kernel, self.blocks = size, full, kernel, len(channels) - 1
        self.crop = tuple(slice((m - n) // 2, (m - n) // 2 + n) for n, m in zip(size, full))
        first = nn.Sequential(CONV[dims](dim, back[0], 1), nn.LeakyReLU(0.2))
        blocks = [Up(dims, a, b, kernel, use_norm) for a, b in pairwise(back)]
        last = nn.Sequential(TRANSPOSED[dims](back[-1], back[-1], 4, 2, 1), nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(first, *blocks, last, CONV[dims](back[-1], out_channels, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)[(slice(None), slice(None), *self.crop)]

    def reach(self, region: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """Pixels (first, end) per axis that positions (first, end) of the grid reach through convolutions.

        Group norm, where it is used, also carries a faint influence to the whole image.
        """
        found = []
        for (a, b), n, m, crop in zip(region, self.size, self.full, self.crop):
            if a < b:
                side = m // 2 ** (self.blocks + 1)  # positions of the grid
                for _ in range(self.blocks):
                    a, b = max(0, a - self.kernel // 2), min(side, b + (self.kernel - 1) // 2)
                    side *= 2
                    a, b = max(0, 2 * a - 1), min(side, 2 * b + 1)  # transposed 4x4, stride 2, padding 1
                a, b = max(0, 2 * a - 1), min(2 * side, 2 * b + 1)
                a, b = (min(max(v - crop.start, 0), n) for v in (a, b))
            else:
                a = b = 0
            found.append((a, b))
        return tuple(found)


class VQAutoencoder(nn.Module):
    """Encoder, quantiser, decoder and observation model: the first stage."""

    def __init__(
        self,
        spec: ImageSpec,
        channels: tuple[int, ...],  # of the trunk
        quantiser: VectorQuantiser,
        kernel: int,  # of the stride-1 convolutions
        use_norm: bool,  # group norm
    ) -> None:
        super().__init__()
        dim = quantiser.codebook.shape[1]
        self.grid = grid_of(spec.size, len(channels))
        self.encoder = GridEncoder(spec.size, spec.channels, channels, dim, kernel, use_norm)
        self.quantiser = quantiser
        self.decoder = GridDecoder(spec.size, spec.channels, channels, dim, kernel, use_norm)
        self.observation = GaussianObservation(spec.channels, "optimal")

    def codes(self, x: Tensor) -> Tensor:
        """Codes (B, *G) int64 of images x (B, C, *S)."""
        return self.quantiser.assign(self.encoder(x))


class VQNet(nn.Module):
    """Both stages: the autoencoder, and the prior over its codes where there is one."""

    def __init__(self, autoencoder: VQAutoencoder, prior: CodePrior | None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.prior = prior
        self.prior_steps: Tensor  # batches that the prior was trained on
        self.register_buffer("prior_steps", torch.tensor(0))

    @property
    def positions(self) -> int:
        """Codes per image."""
        return math.prod(self.autoencoder.grid)
