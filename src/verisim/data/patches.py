"""Crops of images that know where they come from, and images at half resolution, 2D and 3D.

Source 002, sections D.2, D.4 and F; spec 003, section 16-F: coordinate channels beside the image tell a
convolutional network that was trained on crops where it is when it is run on the whole.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.errors import VerisimError

Start = Literal["trapezoid", "thesis", "uniform"]
SHARES = {"trapezoid": 0.25, "thesis": 1 / 3}  # of the free way, for the shorter of two uniform draws


def coordinates(size: tuple[int, ...]) -> Tensor:
    """(d, *S) float32: each pixel's place along each axis, -1 at the first and 1 at the last; 0 if there is one."""
    axes = [torch.linspace(-1, 1, s) if s > 1 else torch.zeros(1) for s in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def random_corners(
    n: int,
    size: tuple[int, ...],  # S of the full images
    crop: tuple[int, ...],  # P <= S along every axis
    generator: torch.Generator | None = None,  # None = torch's global one
    step: int = 1,  # corners are multiples of it, e.g. the stride of a network that halves its input
) -> Tensor:
    """(n, d) int64: first pixel of n crops, uniform over all places that lie within the image."""
    check_crop(size, crop)
    on = "cpu" if generator is None else generator.device
    places = [(s - p) // step + 1 for s, p in zip(size, crop)]
    return step * torch.stack([torch.randint(k, (n,), generator=generator, device=on) for k in places], 1)


def crops(x: Tensor, corners: Tensor, crop: tuple[int, ...]) -> Tensor:
    """x (B, C, *S) cut at corners (B, d) -> (B, C, *P); dtype and device of x."""
    check_crop(tuple(x.shape[2:]), crop)
    if tuple(corners.shape) != (len(x), len(crop)):
        raise VerisimError(
            f"Crops: {tuple(corners.shape)} corners for {len(x)} images of {len(crop)} dimensions; give one corner "
            f"({len(x)}, {len(crop)}) for each image."
        )
    parts = []
    for image, corner in zip(x, corners.tolist()):
        for axis, (first, length) in enumerate(zip(corner, crop), start=1):
            if not 0 <= first <= image.shape[axis] - length:
                raise VerisimError(
                    f"Crops: corner {first} along axis {axis - 1} leaves the image; 0 to "
                    f"{image.shape[axis] - length} is possible for a crop of {length}."
                )
            image = image.narrow(axis, first, length)
        parts.append(image)
    return torch.stack(parts)


def crop_coordinates(size: tuple[int, ...], corners: Tensor, crop: tuple[int, ...]) -> Tensor:
    """(B, d, *P) float32: coordinates(size) cut at corners (B, d), on their device."""
    full = coordinates(size).to(corners.device)
    return crops(full.expand(len(corners), *full.shape), corners, crop)


def check_crop(size: tuple[int, ...], crop: tuple[int, ...]) -> None:
    """Raise VerisimError unless a crop of these sides fits into an image of that size."""
    if len(crop) != len(size) or any(not 1 <= p <= s for p, s in zip(crop, size)):
        raise VerisimError(
            f"Crops: {'x'.join(map(str, crop))} cannot be cut from {'x'.join(map(str, size))}; it takes one side for "
            f"each axis, from 1 pixel to the image's own."
        )


def crop_starts(
    size: tuple[int, ...],  # of the image, in pixels
    patch: int,  # side of the crop
    n: int,  # crops
    kind: Start = "trapezoid",
    generator: torch.Generator | None = None,
) -> Tensor:
    """First pixels of n random crops, (n, len(size)) int64, each axis on its own. VerisimError if patch > size.

    "trapezoid": sum of two uniform integers, on 0...M/4 and on 0...M - M/4 of the M free places (the public
    code; 0...32 and 0...96 for crops of 128 in 256); "thesis": thirds in place of quarters. Both favour the
    middle, where an organ is that was centred; "uniform": none is favoured.
    """
    check_patch(size, patch)
    columns = []
    for side in size:
        free = side - patch
        short = round(free * SHARES[kind]) if kind in SHARES else 0
        parts = [torch.randint(m + 1, (n,), generator=generator) for m in (short, free - short)]
        columns.append(parts[0] + parts[1])
    return torch.stack(columns, 1)


def check_patch(size: tuple[int, ...], patch: int) -> None:
    """VerisimError unless a crop of `patch` pixels a side fits into the image."""
    if not 1 <= patch <= min(size):
        raise VerisimError(
            f"A patch of {patch} pixels a side does not fit into images of {'x'.join(map(str, size))}. Choose "
            f"--model.patch 1 to {min(size)}, or larger images."
        )


Halving = Literal["stride", "mean"]


def halved(x: Tensor, how: Halving) -> Tensor:
    """x (B, C, *S) at half resolution, sides rounded up: every second pixel, or means of two along each axis."""
    if how == "stride":
        return x[(slice(None), slice(None), *[slice(None, None, 2)] * (x.ndim - 2))]
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return pool(x, 2, ceil_mode=True, count_include_pad=False)


def restored(x: Tensor, size: tuple[int, ...], how: Halving) -> Tensor:
    """halved(...) back at `size` by linear interpolation, each value where it was taken from."""
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    if how == "mean":
        twice = F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=False)
    else:  # values sit at the pixels 0, 2, 4, ...; the last one is held
        odd = tuple(2 * s - 1 for s in x.shape[2:])
        twice = F.interpolate(x, size=odd, mode=mode, align_corners=True)
        twice = F.pad(twice, (0, 1) * (x.ndim - 2), mode="replicate")
    return twice[(slice(None), slice(None), *[slice(0, s) for s in size])]
