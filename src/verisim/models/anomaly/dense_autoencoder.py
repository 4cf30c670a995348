"""The reconstruction baseline: an autoencoder with a dense bottleneck; what it cannot restore is abnormal.

    x^ = decode(encode(x)),  loss = mean |x - x^|,  map = filter(|x - x^|)

Source 002, chapter 6 (spec 002, section B): the basic autoencoder of Baur et al. in 3D, with one width m. Its layers
are printed as a picture only; the layout here is the one the specification proposes: strided 5x5x5 convolutions with
batch norm and LeakyReLU of m, 2m, 4m, 4m ... channels, a 1x1x1 convolution to 16, a dense bottleneck of 128, mirrored.
The residual is filtered by size 5: greyscale erosion for haemorrhages, median for fractures, chosen for its benefit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError, pick
from verisim.models.anomaly.base import AnomalyModel, Equalise
from verisim.models.autoencoders.gaussian import CHUNK, evaluating
from verisim.models.autoencoders.trunk import CONV, TRANSPOSED, coarsest_grid, padded
from verisim.models.base import Loss, SamplingOptions

MOST_STAGES = 6  # halvings: 256 -> 4
SQUEEZED = 16  # channels before the dense bottleneck
NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
FILTERS = {
    "none": lambda a, size: a,
    "median": lambda a, size: ndimage.median_filter(a, size),
    "erosion": lambda a, size: ndimage.grey_erosion(a, size=(size,) * a.ndim),
}


@dataclass(frozen=True)
class ResidualOptions(SamplingOptions):
    """How the residual becomes a map."""

    filter: Literal["none", "median", "erosion"] = (
        "erosion"  # source: erosion for blood, median for fractures
    )
    filter_size: int = 5  # side of the filter in pixels


def stage_channels(size: tuple[int, ...], width: int) -> tuple[int, ...]:
    """m, 2m, 4m, 4m, ...: one per halving until the shortest side is 4 to 7 pixels, at most six."""
    halvings = max(1, min(MOST_STAGES, (min(size) // 4).bit_length() - 1))
    return tuple(min(width * 2**k, 4 * width) for k in range(halvings))


class DenseNet(nn.Module):
    """Image (B, C, *S) -> code (B, d) -> image (B, C, *S). Sizes that do not halve evenly are padded and cropped."""

    def __init__(self, spec: ImageSpec, width: int, latent: int) -> None:
        super().__init__()
        dims = spec.spatial_dims
        channels = stage_channels(spec.size, width)
        self.size = spec.size
        full, coarse = padded(spec.size, len(channels)), coarsest_grid(spec.size, len(channels))
        self.pad = [p for n, m in zip(spec.size[::-1], full[::-1]) for p in (0, m - n)]
        self.coarse = (SQUEEZED, *coarse)
        down = [_down(dims, a, b) for a, b in pairwise((spec.channels, *channels))]
        self.encoder = nn.Sequential(*down, CONV[dims](channels[-1], SQUEEZED, 1))
        self.to_code = nn.Linear(prod(self.coarse), latent)
        self.from_code = nn.Linear(latent, prod(self.coarse))
        back = (*channels[::-1], channels[0])
        up = [_up(dims, a, b) for a, b in pairwise(back)]
        self.decoder = nn.Sequential(
            CONV[dims](SQUEEZED, channels[-1], 1), *up, CONV[dims](channels[0], spec.channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(F.pad(x, self.pad, mode="replicate") if any(self.pad) else x)
        h = self.from_code(self.to_code(h.flatten(1)))
        out = self.decoder(h.view(-1, *self.coarse))
        return out[(slice(None), slice(None), *(slice(0, n) for n in self.size))]


def _down(dims: int, before: int, after: int) -> nn.Module:
    return nn.Sequential(CONV[dims](before, after, 5, 2, 2), NORM[dims](after), nn.LeakyReLU(0.2))


def _up(dims: int, before: int, after: int) -> nn.Module:
    conv = TRANSPOSED[dims](before, after, 5, 2, 2, output_padding=1)
    return nn.Sequential(conv, NORM[dims](after), nn.LeakyReLU(0.2))


class DenseAutoencoder(AnomalyModel):
    """Dense autoencoder on images or volumes (B, C, *S) of 8 pixels or more per side. Role: AnomalyDetector."""

    Options = ResidualOptions
    options: ResidualOptions
    net: DenseNet

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        width: int = 32,  # m: channels of the first stage; 2m, then 4m in the others
        latent: int = 128,  # length of the code
        equalise: Equalise = "reference",  # grey values to ranks: of the training images, of each scan, or not
        background: float = -0.95,  # grey value in [-1, 1] up to which a pixel is background
        lr: float = 1e-3,  # Adam learning rate
    ) -> None:
        if min(spec.size) < 8:
            raise VerisimError(
                f"A dense autoencoder cannot take images of {'x'.join(map(str, spec.size))} pixels: each side "
                f"must be 8 or more, e.g. 16."
            )
        if min(width, latent) < 1:
            raise VerisimError(f"width={width}, latent={latent}: each must be 1 or more.")
        super().__init__(spec, DenseNet(spec, width, latent), lr, equalise, background)

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Mean absolute error (B,) of the equalised images."""
        y = self.grey(x, self.net)
        return (y - self.net(y)).abs().flatten(1).mean(1), {}

    @torch.no_grad()
    def residual(self, x: Tensor) -> Tensor:
        """|y - y^| (B, 1, *S), mean over channels, of x (B, C, *S) in [-1, 1], where y are its equalised grey values."""
        self.spec.check(x, "images to search for anomalies")
        parts = []
        with evaluating(cast(DenseNet, self.sampling_net)) as net:
            for part in x.split(CHUNK):
                y = self.grey(part.to(self.device), net)
                parts.append((y - net(y)).abs().mean(1, keepdim=True))
        return torch.cat(parts)

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Filtered residual (B, 1, *S) >= 0 of x (B, C, *S) in [-1, 1]; filter and size are options."""
        return filtered(self.residual(x), self.options.filter, self.options.filter_size)


def filtered(maps: Tensor, kind: str, size: int = 5) -> Tensor:
    """maps (B, 1, *S) by a median or a greyscale erosion over cubes of `size` pixels; edges are mirrored."""
    apply = pick(FILTERS, kind, "filter")
    if size < 1:
        raise VerisimError(f"filter_size={size}: side of the filter in pixels, 1 or more.")
    return torch.from_numpy(np.stack([apply(m.numpy(), size) for m in maps[:, 0].cpu()]))[:, None]
