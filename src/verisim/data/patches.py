"""Crops that know where they come from, and images at half resolution (source 002, sections D.2, D.4, F)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from verisim.errors import VerisimError

Start = Literal["trapezoid", "thesis", "uniform"]
SHARES = {"trapezoid": 0.25, "thesis": 1 / 3}  # of the free way, for the shorter of two uniform draws


def coordinates(size: tuple[int, ...]) -> Tensor:
    """(len(size), *size) float32: along each axis a ramp from -1 at the first pixel to 1 at the last."""
    ramps = [torch.linspace(-1, 1, s) for s in size]
    return torch.stack(torch.meshgrid(*ramps, indexing="ij"))


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


def crop(x: Tensor, starts: Tensor, patch: int) -> Tensor:
    """x (B, C, *S) and starts (B, d) -> (B, C, patch, ...)."""
    rows = []
    for image, first in zip(x, starts.tolist()):
        for axis, s in enumerate(first, start=1):
            image = image.narrow(axis, s, patch)
        rows.append(image)
    return torch.stack(rows)


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
