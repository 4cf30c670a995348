"""Planted discs change what they say by what they say, at the same places for every size and contrast."""

import math

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.phantoms.planted import REACH, plant


def grey(value, n=40, side=64):
    return Images(torch.full((n, 1, side, side), value), ImageSpec((side, side)))


def test_disc_adds_its_contrast_inside_and_nothing_outside():
    """Well inside: contrast times the range (2); beyond the edge of a pixel: nothing. Its area is that of a disc."""
    found, mask = plant(grey(-0.5), 0.1, 0.2)
    added = found.pixels + 0.5
    smaller, larger = (plant(grey(-0.5), r, 0.2)[1] for r in (0.1 - 1 / 64, 0.1 + 1 / 64))
    assert torch.allclose(added[smaller], torch.full_like(added[smaller], 0.4), atol=1e-6)
    assert float(added[~larger].abs().max()) < 1e-6
    assert mask.dtype == torch.bool and mask.shape == added.shape
    area = mask.flatten(1).sum(1).double()
    assert torch.allclose(area, torch.full_like(area, math.pi * 6.4**2), rtol=0.03)


def test_places_belong_to_the_seed_alone():
    """A larger disc holds the smaller one of the same seed; dark is minus bright; another seed is elsewhere."""
    small, large = plant(grey(0.0), 0.03, 0.1), plant(grey(0.0), 0.1, 0.4)
    assert bool((large[1] | ~small[1]).all()) and int(large[1].sum()) > 5 * int(small[1].sum())
    assert torch.equal(plant(grey(0.0), 0.03, -0.1)[0].pixels, -small[0].pixels)
    assert not torch.equal(plant(grey(0.0), 0.03, 0.1, seed=1)[1], small[1])
    row, column = (small[1][:, 0].any(k).double().argmax(1) / 64 for k in (2, 1))
    for place in (row, column):  # all over the middle, and not beyond it
        assert (
            0.5 - REACH / 2 - 0.04 <= float(place.min()) < 0.35 < 0.6 < float(place.max()) < 0.5 + REACH / 2
        )


def test_grey_values_stay_in_range_and_no_disc_is_empty():
    assert float(plant(grey(0.9), 0.1, 0.4)[0].pixels.max()) == 1.0
    assert float(plant(grey(-0.9), 0.1, -0.4)[0].pixels.min()) == -1.0
    assert int(plant(grey(0.0, side=16), 0.001, 0.4)[1].flatten(1).sum(1).min()) == 1


@pytest.mark.parametrize(
    ("shape", "radius"), [((16, 16), 0.0), ((16, 16), 0.25), ((16, 8), 0.1), ((8, 8, 8), 0.1)]
)
def test_refuses(shape, radius):
    images = Images(torch.zeros(2, 1, *shape), ImageSpec(shape))
    with pytest.raises(VerisimError, match=r"planted in square 2D images"):
        plant(images, radius, 0.1)
