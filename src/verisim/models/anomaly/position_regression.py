"""Patch position regression: a network learns where in a normal head a patch sits; what it misplaces is abnormal.

    x^ = f_theta(p_x)                          p_x: the patch around voxel x, coordinates in [0, 1] per axis
    theta* = argmin mean || x - f_theta(p_x) ||_2     over random patches of normal scans (not squared)
    E(x) = || x - f_theta(p_x) ||_2            the anomaly map

Source 002, chapter 6 (spec 002, section A). The layer list of its network is printed as a picture only; the layout
here keeps what the text says (blocks, average pooling, spectral norm, one width m) and is ours otherwise.
No decoder and no full-size feature maps: memory is that of the patches, whatever the size of the scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.models.anomaly.base import AnomalyModel, Equalise
from verisim.models.anomaly.patches import cut, draw_centres, fill_in, foreground, grid, pad, usable_centres
from verisim.models.autoencoders.gaussian import evaluating
from verisim.models.base import Loss, SamplingOptions
from verisim.nets.blocks import CONV
from verisim.seeding import generator

MOST_STAGES = 4  # halvings: 31 -> 15 -> 7 -> 3 -> 1
CHUNK = 256  # patches per forward pass when a map is made
POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class DetectionOptions(SamplingOptions):
    """How a map is made."""

    stride: int = (
        4  # pixels between patches; between them the map is interpolated. 1 = a patch at every pixel
    )


def convolution(dims: int, before: int, after: int, spectral: bool) -> nn.Module:
    """3x3 (x3) convolution that keeps the size, divided by its largest singular value if `spectral`."""
    conv = CONV[dims](before, after, 3, padding=1)
    return spectral_norm(conv) if spectral else conv


class Downsample(nn.Module):
    """Conv - LeakyReLU(0.2) - average pooling of 2, stride 2; an odd last pixel is dropped."""

    def __init__(self, dims: int, before: int, after: int, spectral: bool) -> None:
        super().__init__()
        self.conv = convolution(dims, before, after, spectral)
        self.pool = POOL[dims]

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.leaky_relu(self.conv(x), 0.2), 2)


class Residual(nn.Module):
    """x + Conv(act(Conv(act(x))))."""

    def __init__(self, dims: int, channels: int, spectral: bool) -> None:
        super().__init__()
        self.first = convolution(dims, channels, channels, spectral)
        self.second = convolution(dims, channels, channels, spectral)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))


class PositionNet(nn.Module):
    """Patch (B, C, p, ..., p) -> coordinates (B, d), without squashing.

    Conv(m), then Downsample(2m) Residual(2m), (4m), (8m), (16m) until one position is left, at most four times;
    then Linear - LeakyReLU - Linear(d).
    """

    def __init__(self, dims: int, channels: int, patch: int, width: int, spectral: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(dims, channels, width, spectral)]
        side, c = patch, width
        for _ in range(MOST_STAGES):
            if side == 1:
                break
            layers += [Downsample(dims, c, 2 * c, spectral), Residual(dims, 2 * c, spectral)]
            side, c = side // 2, 2 * c
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(c * side**dims, c), nn.LeakyReLU(0.2), nn.Linear(c, dims))

    def forward(self, patches: Tensor) -> Tensor:
        return self.head(self.features(patches).flatten(1))


class PositionRegression(AnomalyModel):
    """Position regression on images or volumes (B, C, *S) that are registered to one another. Role: AnomalyDetector.

    Raises VerisimError for patches that are even or larger than the image, and for an averaged network: the
    vectors of the spectral norm cannot be averaged.
    """

    Options = DetectionOptions
    options: DetectionOptions
    net: PositionNet

    def __init__(
        self,
        spec: ImageSpec,
        num_classes: int = 0,
        *,
        width: int = 16,  # m: channels of the stem; doubled at every halving
        patch: int = 31,  # side of a patch in pixels, odd
        patches: int = 256,  # patches per training image and step
        spectral: bool = True,  # spectral norm of the convolutions
        shuffled: bool = False,  # control: targets of other patches; must find nothing
        equalise: Equalise = "reference",  # grey values to ranks: of the training images, of each scan, or not
        background: float = -0.95,  # grey value in [-1, 1] up to which a pixel is background
        lr: float = 1e-4,  # Adam learning rate
    ) -> None:
        if patch % 2 == 0 or patch < 3:
            raise VerisimError(
                f"patch={patch}: a patch has a centre, so its side is an odd number of 3 pixels or more. "
                f"Nearest: {max(3, patch + 1)}."
            )
        if patch > min(spec.size):
            most = min(spec.size) - (min(spec.size) + 1) % 2
            raise VerisimError(
                f"patch={patch}: larger than the images, which are {'x'.join(map(str, spec.size))} pixels. Take at "
                f"most --model.patch {most}, or larger images."
            )
        if min(width, patches) < 1:
            raise VerisimError(f"width={width}, patches={patches}: each must be 1 or more.")
        net = PositionNet(spec.spatial_dims, spec.channels, patch, width, spectral)
        super().__init__(spec, net, lr, equalise, background)
        self.patch, self.patches, self.spectral, self.shuffled = patch, patches, spectral, shuffled

    def enable_ema(self, decay: float) -> None:
        self._refuse_average()
        super().enable_ema(decay)

    def enable_power_ema(self, lengths: tuple[float, ...] = ()) -> None:
        self._refuse_average()
        super().enable_power_ema(*([lengths] if lengths else []))

    def _refuse_average(self) -> None:
        if self.spectral:
            raise VerisimError(
                "Position regression with spectral norm has no moving average of its weights: set "
                "--training.ema 0 and --training.snapshot_steps 0, or --model.spectral false."
            )

    # --- training ---------------------------------------------------------------------------------

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Mean distance (B,) between true and regressed position of random patches, in edges of the image.

        Centres are uniform over the pixels whose patch is not all background; what is drawn depends on
        (seed, rank, step) alone. An image without foreground costs nothing.
        """
        g = generator("patches", self.step_seed)
        usable = usable_centres(foreground(x, self.background), self.patch)  # (B, *S)
        centres = torch.stack([draw_centres(u, self.patches, g) for u in usable])  # (B, n, d)
        padded = pad(self.grey(x, self.net), self.patch, -1.0)
        patches = torch.cat([cut(i, c, self.patch) for i, c in zip(padded, centres)])  # (B n, C, p, ..., p)
        target = self.normalised(centres)
        if self.shuffled:
            target = target[:, torch.randperm(self.patches, generator=g).to(target.device)]
        found = self.net(patches).float().view(target.shape)
        distance = torch.linalg.vector_norm(found - target, dim=-1).mean(1)  # L_coords, (B,)
        return distance * usable.flatten(1).any(1), {}

    def normalised(self, centres: Tensor) -> Tensor:
        """Pixel indices (..., d) as coordinates in [0, 1] per axis: index / (N - 1)."""
        last = torch.tensor([n - 1 for n in self.spec.size], device=centres.device)
        return centres / last

    # --- role -------------------------------------------------------------------------------------

    @torch.no_grad()
    def anomaly_map(self, x: Tensor) -> Tensor:
        """E (B, 1, *S) >= 0 in edges of the image (1 = a whole edge) for x (B, C, *S) in [-1, 1].

        Regressed at a grid of `options.stride` pixels that holds the first and last pixel of every axis, linear
        in between; 0 where a patch sees background alone. VerisimError for a stride below 1.
        """
        self.spec.check(x, "images to search for anomalies")
        if self.options.stride < 1:
            raise VerisimError(f"stride={self.options.stride}: pixels between patches, 1 or more.")
        axes = grid(self.spec.size, self.options.stride)
        maps = [fill_in(self._errors(i.to(self.device), axes), axes, self.spec.size) for i in x]
        return torch.stack(maps)[:, None]

    def _errors(self, image: Tensor, axes: Sequence[Tensor]) -> Tensor:
        """E of one image (C, *S) at the grid's positions, (len(axis), ...)."""
        net = cast(PositionNet, self.sampling_net)
        usable = usable_centres(foreground(image[None], self.background), self.patch)[0]
        points = torch.cartesian_prod(*axes).to(self.device)  # (K, d)
        errors = torch.zeros(len(points), device=self.device)
        seen = usable[tuple(points.unbind(1))].nonzero().flatten()
        with evaluating(net):
            padded = pad(self.grey(image[None], net), self.patch, -1.0)[0]
            for part in seen.split(CHUNK):
                found = net(cut(padded, points[part], self.patch)).float()
                errors[part] = torch.linalg.vector_norm(found - self.normalised(points[part]), dim=-1)
        return errors.view([len(a) for a in axes])
