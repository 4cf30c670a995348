"""Crops and their coordinates: what a patch-trained network is told of its place must be exactly that place."""

import pytest
import torch

from verisim.data.patches import coordinates, crop_coordinates, crops, random_corners
from verisim.errors import VerisimError


@pytest.mark.parametrize("size", [(9, 5), (4, 6, 3), (1, 7)])
def test_coordinates_run_from_minus_one_to_one(size):
    """Golden ends along each own axis, constant along the others; a single pixel is in the middle."""
    c = coordinates(size)
    assert c.shape == (len(size), *size)
    for axis, s in enumerate(size):
        line = c[axis].movedim(axis, 0)
        assert torch.equal(line[0], torch.full_like(line[0], -1.0 if s > 1 else 0.0))
        assert torch.equal(line[-1], torch.full_like(line[0], 1.0 if s > 1 else 0.0))
        assert float(line.flatten(1).std(1, unbiased=False).max()) < 1e-6


@pytest.mark.parametrize(("size", "crop"), [((9, 5), (4, 5)), ((6, 7, 8), (3, 2, 4))])
def test_coordinates_of_a_crop_are_the_crop_of_the_coordinates(size, crop):
    """Exactly; and not those of a crop that is coordinatised by itself (control)."""
    corners = random_corners(20, size, crop, torch.Generator().manual_seed(0))
    seen = crop_coordinates(size, corners, crop)
    for row, corner in zip(seen, corners.tolist()):
        place = tuple(slice(a, a + p) for a, p in zip(corner, crop))
        assert torch.equal(row, coordinates(size)[(slice(None), *place)])
    assert not torch.equal(seen[0], coordinates(crop))
    full = torch.stack([coordinates(size)] * 20)
    assert torch.equal(crops(full, corners, crop), seen)


def test_crops_keep_type_and_content():
    """Labels stay integers; each crop is the image's own part."""
    x = torch.arange(2 * 5 * 6).view(2, 1, 5, 6)
    out = crops(x, torch.tensor([[1, 2], [0, 3]]), (3, 3))
    assert out.dtype == torch.int64
    assert torch.equal(out[0], x[0, :, 1:4, 2:5]) and torch.equal(out[1], x[1, :, 0:3, 3:6])


def test_every_corner_is_drawn_and_none_outside():
    """Uniform over the places: all 3 x 1 x 2 of them occur about equally often."""
    corners = random_corners(6000, (5, 4, 3), (3, 4, 2), torch.Generator().manual_seed(1))
    places, counts = corners.unique(dim=0, return_counts=True)
    assert len(places) == 6 and tuple(corners.amax(0).tolist()) == (2, 0, 1)
    assert int(counts.min()) > 850 and int(counts.max()) < 1150

    stepped = random_corners(400, (9, 6), (4, 6), torch.Generator().manual_seed(1), step=2)
    assert stepped.unique(dim=0).tolist() == [[0, 0], [2, 0], [4, 0]]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: random_corners(1, (4, 4), (5, 4)), "5x4 cannot be cut from 4x4"),
        (lambda: random_corners(1, (4, 4), (2,)), "2 cannot be cut from 4x4"),
        (lambda: crops(torch.zeros(2, 1, 4, 4), torch.zeros(1, 2).long(), (2, 2)), "one corner"),
        (lambda: crops(torch.zeros(1, 1, 4, 4), torch.tensor([[3, 0]]), (2, 2)), "0 to 2 is possible"),
    ],
)
def test_what_does_not_fit_is_refused(call, text):
    with pytest.raises(VerisimError, match=text):
        call()
