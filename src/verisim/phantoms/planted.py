"""Discs planted in images: a finding of known place, size and contrast that no phantom of the training set has."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.phantoms.shapes import cover
from verisim.seeding import generator

REACH = 0.5  # centres lie in the middle square of this share of the image's side


def plant(
    images: Images,
    radius: float,  # of the disc, as a share of the image's side
    contrast: float,  # what the disc adds to grey values on [0, 1]; negative = darker
    seed: int = 0,  # of the places: they are the same for every radius and contrast
) -> tuple[Images, Tensor]:
    """A disc in each image, with an edge one pixel wide, and where it is: (N, 1, H, W) bool.

    Grey values are clipped to the images' range, so a bright disc on bright bone may add less than `contrast`.
    VerisimError unless images are square and 2D, and 0 < radius < 0.25.
    """
    spec = images.spec
    if spec.spatial_dims != 2 or len(set(spec.size)) != 1 or not 0 < radius < REACH / 2:
        raise VerisimError(
            f"plant: images of {spec.shape} and radius={radius:g}; discs of radius 0 to {REACH / 2:g} of the side are "
            f"planted in square 2D images."
        )
    n, side = len(images), spec.size[0]
    centre = (torch.rand(n, 2, generator=generator("planted", seed)) - 0.5) * REACH  # (N, 2) from the middle
    centre = (centre * side).floor().add(
        0.5
    ) / side  # the middle of a pixel, so that every disc covers one at least
    axis = (torch.arange(side) + 0.5) / side - 0.5
    down = axis[None, :, None] - centre[:, 0, None, None]  # (N, H, 1)
    along = axis[None, None, :] - centre[:, 1, None, None]  # (N, 1, W)
    distance = (down.square() + along.square()).sqrt() - radius  # (N, H, W)
    added = contrast * (spec.high - spec.low) * cover(distance, 1 / side)
    pixels = (images.pixels + added[:, None]).clamp(spec.low, spec.high)
    return replace(images, pixels=pixels), (distance < 0)[:, None]
