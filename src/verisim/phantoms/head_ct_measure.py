"""Measures head CTs from their pixels alone: skull content, ventricles, blood and its side.

Images must show the default window of the phantom, -100 to 200 HU. The skull is what saturates; what it
encloses is the brain; there, after smoothing, bright is blood and, in the middle, dark is ventricle. A rim of
one pixel beside the bone is left out, so thin layers of blood are read too small. Fractures are not read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.phantoms.brain_measure import central_box
from verisim.phantoms.head_ct import WINDOW
from verisim.phantoms.head_ct_render import HU
from verisim.phantoms.volume import spacing

CHUNK = 64  # images measured at a time
BOX = (0.33, 0.42, (-0.15, 0.45))  # where ventricles lie, in half widths of the skull's content
BLOOD, FLUID = 47.0, 21.0  # HU above and below which smoothed tissue is taken for blood and for ventricle
BRAIN = (HU["grey"] + HU["white"]) / 2
# bone saturates the window where it fills 19 % of a pixel, which is this far outside of half of it
EARLY = 0.5 - (WINDOW[1] - HU["grey"]) / (HU["skull"] - HU["grey"])  # pixels


def measure(images: Images) -> dict[str, Tensor]:
    """Numbers per image, each (N,) float64, from pixels (N, 1, *S) that show -100 to 200 HU.

    volume_intracranial, volume_ventricles, volume_blood in mL by the images' spacing or, where it is unknown,
    the phantom's rule; slices give area_* in cm^2 instead.
    blood_side: blood at the image right minus at the left over their sum, in [-1, 1]; 0 without blood.
    Raises VerisimError for images that are neither 2D nor 3D, of several channels or below 16 pixels.
    """
    spec = images.spec
    if spec.spatial_dims not in (2, 3) or spec.channels != 1 or min(spec.size) < 16:
        raise VerisimError(
            f"phantoms.head_ct_measure: images of shape {spec.shape} (channels, *size); slices or volumes of "
            f"one channel and at least 16 pixels a side can be measured. Convert or resize first."
        )
    unit = 1.0
    for mm in spec.spacing or (spacing(spec.size),) * spec.spatial_dims:
        unit *= mm / 10  # cm, so mL or cm^2
    x = images.to_range(*WINDOW).pixels
    parts = [_measure(c.double(), unit) for c in x.split(CHUNK)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def _measure(hu: Tensor, unit: float) -> dict[str, Tensor]:
    """hu (B, 1, *S); unit = size of a pixel in mL or cm^2."""
    flat = hu.ndim == 4
    largest, mean = (F.max_pool2d, F.avg_pool2d) if flat else (F.max_pool3d, F.avg_pool3d)
    bone = hu > WINDOW[1] - 1
    inside = enclosed(bone[:, 0])  # (B, *S)
    beside = largest(bone.double(), 3, 1, 1)[:, 0] > 0
    calm = (inside & ~beside).double()
    smooth = mean(hu, 3, 1, 1)[:, 0]
    bright, dark = calm * (smooth > BLOOD), calm * (smooth < FLUID) * central_box(inside.double(), BOX)
    bright, dark = (calm * largest(m[:, None], 3, 1, 1)[:, 0] for m in (bright, dark))  # with their edges
    blood = bright * (hu[:, 0] - BRAIN) / (HU["blood"] - BRAIN)  # the share of each pixel
    fluid = dark * (hu[:, 0] - HU["white"]) / (HU["csf"] - HU["white"])
    axis = torch.arange(hu.shape[-1], dtype=hu.dtype)
    columns = inside.double().flatten(1, -2).sum(1)
    middle = (columns * axis).sum(1) / columns.sum(1).clamp(min=1e-6)
    right = (blood.flatten(1, -2).sum(1) * (axis > middle[:, None])).sum(1)
    total = blood.flatten(1).sum(1).clamp(min=0.0)
    kind = "area" if flat else "volume"
    return {
        f"{kind}_intracranial": _grown(inside.double().flatten(1).sum(1), 2 if flat else 3) * unit,
        f"{kind}_ventricles": fluid.flatten(1).sum(1).clamp(min=0.0) * unit,
        f"{kind}_blood": total * unit,
        "blood_side": ((2 * right - total) / total.clamp(min=1e-6)).clamp(-1.0, 1.0) * (total > 0),
    }


def _grown(pixels: Tensor, dims: int) -> Tensor:
    """Size of a disc or ball of that many pixels when its radius grows by EARLY; 0 stays 0."""
    if dims == 2:
        grown = math.pi * ((pixels / math.pi).sqrt() + EARLY).square()
    else:
        grown = 4 / 3 * math.pi * ((pixels * 3 / (4 * math.pi)) ** (1 / 3) + EARLY) ** 3
    return torch.where(pixels > 0, grown, 0.0)


def enclosed(bone: Tensor) -> Tensor:
    """Pixels that are not bone and see bone in both directions of every axis; bool (B, *S)."""
    inside = ~bone
    for axis in range(1, bone.ndim):
        before = bone.long().cumsum(axis) > 0
        after = bone.long().flip(axis).cumsum(axis).flip(axis) > 0
        inside = inside & before & after
    return inside
