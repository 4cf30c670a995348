"""Crops of images and where they come from: coordinate channels in [-1, 1] of the full image, 2D and 3D.

Patch diffusion (spec 003, section 16-F) and patch-trained segmentation put them beside the image, so that a
convolutional network trained on crops knows where it is when it is run on the whole.
"""

from __future__ import annotations

import torch
from torch import Tensor

from verisim.errors import VerisimError


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
