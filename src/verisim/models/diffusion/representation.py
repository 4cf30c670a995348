"""What a diffusion model denoises in place of pixels: an encode/decode pair around the same core.

    x (B, C, *S) in [-1, 1]  --encode-->  z (B, C', *S')  --decode-->  x

The core (noise, network, sampler, guidance) sees z alone. `pixels` is the identity, `haar` the wavelet bands
of WDM (spec 003, section 16-H); first_stage.Latent is the latent of a trained autoencoder (16-J). A representation
is a module, so that what it measured on the training images travels in checkpoints and weights files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.nets.haar import check_haar_size, haar, inverse_haar

CHUNK = 64  # images encoded at a time when measuring
FLOOR = 1e-3  # least standard deviation of a channel, as a share of the largest

Name = Literal["pixels", "haar", "latent"]


class Representation(nn.Module):
    """The identity, and the base of the others."""

    name = "pixels"
    orthonormal = True  # a rotation: white noise stays white, densities keep their value
    clips = True  # estimates can be clipped to [-1, 1] in image space

    def __init__(self, image: ImageSpec) -> None:
        super().__init__()
        self.image = image
        self.spec = image  # of z: its size and channels; low and high mean nothing there

    def encode(self, x: Tensor) -> Tensor:
        """z (B, C', *S') of images x (B, C, *S) in [-1, 1]; no gradient is needed through it."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Images (B, C, *S) of z (B, C', *S'); not clipped."""
        return z

    def clip(self, z: Tensor) -> Tensor:
        """z with its image clipped to [-1, 1]."""
        return self.encode(self.decode(z).clamp(-1, 1))

    @property
    def spread(self) -> Tensor | None:
        """Standard deviation of the channels of z, (C',) or (1,), or None: what the user says of the images.

        VerisimError where it has to be measured first.
        """
        return None

    def measure(self, x: Tensor) -> None:
        """Take what is needed from the training images (N, C, *S), once before the first step."""

    def known(self, mask: Tensor) -> Tensor:
        """Where z is known, bool (B, 1, *S'): all pixels beneath are. mask bool (B or 1, C or 1, *S)."""
        part = mask.expand(-1, -1, *self.image.size).all(dim=1, keepdim=True)
        if self.spec.size == self.image.size:
            return part
        pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if part.ndim == 4 else F.adaptive_avg_pool3d
        return pool(part.float(), self.spec.size) == 1

    def settings_to_rebuild(self) -> dict[str, str]:
        """Model settings that change where the model is rebuilt from its own files."""
        return {}

    def agrees(self, other: Representation) -> bool:
        """True if z means the same in both."""
        return self.name == other.name and self.spec.shape == other.spec.shape


class Haar(Representation):
    """Wavelet bands, the low one scaled: z = (low_scale LL...L, details).

    low_scale 1 is the orthonormal transform, which changes nothing but the basis (nets.haar). WDM takes 1/3,
    close to the 1/sqrt 8 that puts the low band of a volume back on [-1, 1].
    """

    name = "haar"

    def __init__(
        self,
        image: ImageSpec,  # every side a multiple of 2^levels
        levels: int = 1,  # halvings
        low_scale: float = 1.0,  # factor on the low band; > 0
        band_std: tuple[float, ...] = (),  # standard deviation of each band of z; () = measured
    ) -> None:
        super().__init__(image)
        check_haar_size(image.size, levels)
        if not (math.isfinite(low_scale) and low_scale > 0):
            raise VerisimError(
                f"low_scale = {low_scale:g}: the factor on the low band must be positive, e.g. 1 (orthonormal) "
                f"or 0.333 (as WDM)."
            )
        unit = 2**levels
        channels = image.channels * unit**image.spatial_dims
        self.spec = replace(image, channels=channels, size=tuple(s // unit for s in image.size), spacing=None)
        self.levels, self.low_scale = levels, low_scale
        self.orthonormal = low_scale == 1
        self.band_std: Tensor  # (C',) float32; NaN = not measured yet
        self.register_buffer("band_std", _given(band_std, channels))

    def encode(self, x: Tensor) -> Tensor:
        return self._scaled(haar(x, self.levels), self.low_scale)

    def decode(self, z: Tensor) -> Tensor:
        return inverse_haar(self._scaled(z, 1 / self.low_scale), self.levels)

    def _scaled(self, z: Tensor, factor: float) -> Tensor:
        """z with its low band, which is its first C channels, times factor."""
        if factor == 1:
            return z
        c = self.image.channels
        return torch.cat([z[:, :c] * factor, z[:, c:]], dim=1)

    @property
    def spread(self) -> Tensor:
        if not torch.isfinite(self.band_std).all():
            raise VerisimError(
                "This wavelet model has no band statistics: the standard deviation of each band is measured on "
                "the training images. Call model.prepare(images) before the first step ('verisim train' does), "
                "or give --model.band_std."
            )
        return self.band_std

    def measure(self, x: Tensor) -> None:
        if not torch.isfinite(self.band_std).all():
            self.band_std.copy_(channel_statistics(self.encode, self, x)[1])

    def agrees(self, other: Representation) -> bool:
        return super().agrees(other) and isinstance(other, Haar) and self.low_scale == other.low_scale


def _given(band_std: tuple[float, ...], channels: int) -> Tensor:
    """band_std as a tensor, NaN where it is to be measured. VerisimError for the wrong number or sign."""
    if not band_std:
        return torch.full((channels,), math.nan)
    if len(band_std) != channels or not all(math.isfinite(s) and s > 0 for s in band_std):
        raise VerisimError(
            f"band_std has {len(band_std)} values; it takes one positive standard deviation for each of the "
            f"{channels} bands, or none to have them measured."
        )
    return torch.tensor(band_std)


@torch.no_grad()
def channel_statistics(
    encode: Callable[[Tensor], Tensor], representation: Representation, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C',) float64 of each channel of encode(x), training images x (N, C, *S).

    A channel that hardly varies gets FLOOR times the largest standard deviation. VerisimError where there
    are no images, or where none varies.
    """
    representation.image.check(x, "training images")
    n, total, square = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    device = next((t.device for t in representation.buffers()), x.device)
    for part in x.split(CHUNK):
        z = encode(part.to(device)).double().flatten(2)  # (B, C', N)
        n += z.shape[0] * z.shape[2]
        total, square = total + z.sum((0, 2)).cpu(), square + z.square().sum((0, 2)).cpu()
    mean = total / n
    std = (square / n - mean.square()).clamp(min=0).sqrt()
    top = float(std.max())
    if not math.isfinite(top) or top < 1e-6:
        raise VerisimError(
            f"The {representation.name} representation of the training images does not vary (largest standard "
            f"deviation {top:.3g}). Look at the images with 'verisim data check', or train the first stage longer."
        )
    return mean, std.clamp(min=FLOOR * top)
