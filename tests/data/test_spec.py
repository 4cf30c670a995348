"""Ranges are part of the type: a mismatch is an error, never a silent rescale."""

from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import RangeError


def images(low=-1.0, high=1.0, n=4):
    x = torch.rand(n, 1, 8, 8) * (high - low) + low
    return Images(x, ImageSpec((8, 8), low=low, high=high))


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (torch.rand(2, 1, 8, 8) * 255, r"values in .* where \[-1, 1\] is meant.*to_range"),
        (torch.full((2, 1, 8, 8), torch.nan), "2 of 2 images hold NaN"),
        (torch.zeros(0, 1, 8, 8), "there are no images"),
        (torch.zeros(2, 1, 8, 9), r"expected images of shape \(1, 8, 8\)"),
    ],
)
def test_wrong_pixels_are_refused(pixels, text):
    """[0, 255], NaN and the wrong size each get one sentence."""
    with pytest.raises(RangeError, match=text):
        Images(pixels, ImageSpec((8, 8)))


def test_range_change_is_exact_and_invertible():
    """[-1, 1] -> [0, 1] -> [-1, 1] is the identity."""
    a = images()
    b = a.to_range(0, 1)
    assert b.spec.low == 0 and 0 <= float(b.pixels.min()) and float(b.pixels.max()) <= 1
    assert torch.allclose(b.to_range(-1, 1).pixels, a.pixels, atol=1e-6)


def test_quantise_keeps_8_bit_values():
    """What an 8-bit file holds is a fixed point; other values move by at most half a level."""
    a = images().quantise()
    levels = (a.pixels + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert torch.equal(a.quantise().pixels, a.pixels)


def test_sets_of_two_ranges_do_not_mix():
    """Source 004's mistake cannot happen: comparing [0, 1] with [-1, 1] raises."""
    with pytest.raises(RangeError, match="one size and range"):
        images().require_same_spec(images(0.0, 1.0), "judge")


def test_subset_keeps_labels_and_names():
    """Index and mask pick the same rows of everything."""
    x = Images(
        torch.zeros(3, 1, 8, 8), ImageSpec((8, 8)), torch.tensor([5, 6, 7]), ("a", "b", "c"), ("x", "y", "z")
    )
    y = x.subset(torch.tensor([False, True, True]))
    assert y.labels.tolist() == [6, 7] and y.patients == ("b", "c") and y.names == ("y", "z")


def test_joined_sets_keep_what_both_know():
    """Labels, masks, texts, patients and names of both, in order; what one lacks is left out; ranges must agree."""
    a, b = images(n=2), images(n=3)

    def known(x, k):
        masks = torch.full((len(x), 1, 8, 8), k, dtype=torch.uint8)
        texts = (f"text {k}",) * len(x)
        return replace(x, labels=torch.full((len(x),), k), segmentation=masks, texts=texts, names=texts)

    both = known(a, 1).joined(known(b, 2))
    assert torch.equal(both.pixels, torch.cat([a.pixels, b.pixels]))
    assert both.labels.tolist() == [1, 1, 2, 2, 2]
    assert both.segmentation.flatten(1)[:, 0].tolist() == [1, 1, 2, 2, 2]
    assert both.texts == both.names == ("text 1",) * 2 + ("text 2",) * 3
    assert both.patients is None and len(both) == 5
    half = known(a, 1).joined(b)
    assert half.labels is None and half.segmentation is None and half.texts is None
    assert a.joined(known(b, 2)).labels is None
    with pytest.raises(RangeError, match="joined images"):
        a.joined(images(low=0.0))
