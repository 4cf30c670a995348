"""Measuring chests from pixels: right on known anatomy, wrong-way-round on mirrored images."""

from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS
from verisim.phantoms.chest import make

measure = PHANTOMS["chest"].measure


@pytest.fixture(scope="module")
def phantom():
    return make(256, seed=5, size=64)


@pytest.fixture(scope="module")
def measured(phantom):
    return measure(phantom.images)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def blurred(images):
    return replace(
        images, pixels=torch.nn.functional.avg_pool2d(images.pixels, 5, 1, 2, count_include_pad=False)
    )


def test_ratio_matches_the_known_one(phantom, measured):
    """Cardiothoracic ratio from pixels: correlation 0.8 asked, 0.96 reached; error about 0.01."""
    true = phantom.factors["cardiothoracic_ratio"]
    assert correlation(measured["cardiothoracic_ratio"], true) > 0.9
    assert float((measured["cardiothoracic_ratio"] - true).abs().mean()) < 0.02


def test_lung_darkness_follows_the_known_level(phantom, measured):
    """Brighter lungs are measured as less dark."""
    assert correlation(measured["lung_darkness"], phantom.factors["lung_level"]) < -0.6


def test_midline_follows_the_known_shift(phantom, measured):
    """The axis of symmetry is where the patient stands."""
    error = measured["midline"] - phantom.factors["shift_x"]
    assert float(error.abs().median()) < 0.04


def test_heart_is_on_the_left(measured):
    """Heart side right in at least 97 % of unmirrored phantoms."""
    assert float((measured["laterality"] > 0).double().mean()) >= 0.97


def test_mirrored_images_are_caught(phantom, measured):
    """Negative control: flip augmentation turns the sign, exactly."""
    flipped = measure(replace(phantom.images, pixels=phantom.images.pixels.flip(-1)))
    assert torch.allclose(flipped["laterality"], -measured["laterality"], atol=1e-9)
    assert float((flipped["laterality"] < 0).double().mean()) >= 0.97
    assert torch.allclose(flipped["symmetry"], measured["symmetry"], atol=1e-9)


@pytest.mark.parametrize("size", [32, 128])
def test_other_sizes(size):
    """Smaller and larger images are measured on the same grid."""
    p = make(128, seed=6, size=size)
    m = measure(p.images)
    assert correlation(m["cardiothoracic_ratio"], p.factors["cardiothoracic_ratio"]) > 0.8
    assert float((m["laterality"] > 0).double().mean()) >= 0.97


def test_blurred_images_keep_their_anatomy_and_lose_sharpness(phantom, measured):
    """Generated samples are often smooth: the ratio must survive that, sharpness must show it."""
    m = measure(blurred(phantom.images))
    assert correlation(m["cardiothoracic_ratio"], phantom.factors["cardiothoracic_ratio"]) > 0.8
    assert (m["sharpness"] < measured["sharpness"]).all()


def test_noise_has_no_anatomy(measured):
    """Negative control: noise is neither symmetric nor one-sided, and far too sharp."""
    noise = torch.rand(128, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    m = measure(Images(noise, ImageSpec((64, 64))))
    assert all(torch.isfinite(v).all() for v in m.values())
    assert float(m["symmetry"].mean()) < 0.5 < float(measured["symmetry"].mean())
    assert 0.3 < float((m["laterality"] > 0).double().mean()) < 0.7
    assert float(m["sharpness"].min()) > float(measured["sharpness"].max())


def test_other_ranges_give_the_same_numbers(phantom, measured):
    """The range belongs to the images: [0, 255] and [-1, 1] are measured alike."""
    m = measure(phantom.images.to_range(0.0, 255.0))
    assert torch.allclose(m["cardiothoracic_ratio"], measured["cardiothoracic_ratio"], atol=1e-4)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_images_give_finite_numbers(value):
    """A collapsed generator must not break the report."""
    m = measure(Images(torch.full((2, 1, 32, 32), value), ImageSpec((32, 32))))
    assert all(torch.isfinite(v).all() for v in m.values()) and float(m["laterality"].abs().max()) < 1e-9


@pytest.mark.parametrize(
    "spec", [ImageSpec((32, 32), channels=3), ImageSpec((8, 8)), ImageSpec((16, 16, 16))]
)
def test_only_grey_two_dimensional_images(spec):
    """The error names the shape and what to do."""
    with pytest.raises(VerisimError, match=r"one channel.*Convert to grey"):
        measure(Images(torch.zeros(1, *spec.shape), spec))
