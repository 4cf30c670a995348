"""The knee phantom: grade, joint space and side are exactly what the factors say, and readable from pixels."""

import math
from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS
from verisim.phantoms.knee import BLOCK, JITTER, JOINT_SPACE, PREVALENCE, draw, make
from verisim.phantoms.knee_render import _femur, _tibia, band_pass, render

measure = PHANTOMS["knee"].measure


@pytest.fixture(scope="module")
def phantom():
    return make(512, seed=11, size=64)


@pytest.fixture(scope="module")
def measured(phantom):
    return measure(phantom.images)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


@pytest.mark.parametrize("n", [1, BLOCK, BLOCK + 1])
def test_image_does_not_depend_on_n(phantom, n):
    """Image i of a seed is one image, in small and in large sets; another seed shows others."""
    small = make(n, seed=11, size=64)
    assert torch.equal(small.images.pixels, phantom.images.pixels[:n])
    assert all(torch.equal(v, phantom.factors[k][:n]) for k, v in small.factors.items())
    assert not torch.equal(small.images.pixels, make(n, seed=12, size=64).images.pixels)


def test_size_as_number_or_pair():
    """64 and (64, 64) are the same request, and factors do not depend on the size."""
    a, b = make(3, 1, 48), make(3, 1, (48, 48))
    assert torch.equal(a.images.pixels, b.images.pixels) and a.images.spec.size == (48, 48)
    assert torch.equal(a.factors["joint_space"], make(3, 1, 17).factors["joint_space"])


def test_joint_space_is_the_drawn_distance(phantom):
    """Below the middle of each condyle, bone ends and begins again exactly joint_space further down."""
    f = {k: v[:100].double().view(-1, 1, 1) for k, v in phantom.factors.items()}
    y = torch.linspace(-0.2, 0.2, 4001, dtype=torch.float64).view(1, -1, 1)
    for sign, name in ((1, "lateral"), (-1, "medial")):
        x = (sign * 0.5 * f["femur_width"]).expand(-1, y.shape[1], 1)
        gap = (_femur(f, x, x.abs(), y) > 0) & (_tibia(f, x, x.abs(), y) > 0)
        height = gap.double().sum((1, 2)) * 1e-4 / 2  # 1e-4 of 2 units a step -> fraction of the image
        assert torch.allclose(height, f[f"joint_space_{name}"].flatten(), atol=1e-4)


def test_the_middle_of_the_condyle_is_where_the_joint_is_narrowest(phantom):
    """No other column of the compartment has less joint space: the factor is the radiologist's minimum."""
    f = {k: v[:60].double().view(-1, 1, 1) for k, v in phantom.factors.items()}
    y = torch.linspace(-0.3, 0.3, 3001, dtype=torch.float64).view(1, -1, 1)
    for share in (0.3, 0.4, 0.6, 0.7, 0.8):
        for sign, name in ((1, "lateral"), (-1, "medial")):
            x = (sign * share * f["femur_width"]).expand(-1, y.shape[1], 1)
            gap = (_femur(f, x, x.abs(), y) > 0) & (_tibia(f, x, x.abs(), y) > 0)
            assert (gap.double().sum((1, 2)) * 1e-4 >= f[f"joint_space_{name}"].flatten() - 2e-4).all()


def test_grades_follow_the_specification():
    """Prevalence within four standard errors; joint space within the jitter of its grade's mean."""
    blocks = [draw(0, b) for b in range(200)]
    f = {k: torch.cat([b[k] for b in blocks]) for k in blocks[0]}
    n = len(f["grade"])
    for grade, p in enumerate(PREVALENCE):
        of = f["grade"] == grade
        assert abs(float(of.float().mean()) - p) < 4 * math.sqrt(p * (1 - p) / n)
        assert float((f["joint_space"][of] - JOINT_SPACE[grade]).abs().max()) <= JITTER + 1e-6
    healthy = f["grade"] == 0
    assert not f["osteophyte_radius"][healthy].any() and not f["sclerosis"][healthy].any()
    assert (f["osteophyte_radius"][~healthy] > 0).all() and (f["sclerosis"][~healthy] > 0).all()
    assert float(f["joint_space_min"].min()) > 0
    assert torch.allclose((f["joint_space_medial"] + f["joint_space_lateral"]) / 2, f["joint_space"])


def test_only_the_side_factor_mirrors():
    """A left knee is the mirror image of the same right knee, exactly, and neither is drawn unasked."""
    f, none = draw(4, 0), torch.zeros(BLOCK, 48, 48)
    right = {**f, "side": -torch.ones(BLOCK)}
    left = {**f, "side": torch.ones(BLOCK), "shift_x": -f["shift_x"]}
    a, b = (torch.cat(list(render(g, 48, BLOCK, none, none))) for g in (right, left))
    assert torch.allclose(a, b.flip(-1), atol=1e-5)
    assert not torch.allclose(a, b, atol=1e-1)
    for side, value in (("left", 1.0), ("right", -1.0)):
        p = make(130, 11, 16, side=side)
        assert set(p.factors["side"].tolist()) == {value}
        assert torch.equal(p.factors["femur_width"], make(130, 11, 16).factors["femur_width"])
    assert 0.4 < float((make(512, 11, 16).factors["side"] > 0).float().mean()) < 0.6


@pytest.mark.parametrize("name", ["osteophyte_radius", "sclerosis"])
def test_signs_of_arthrosis_are_visible(name):
    """Taking one sign away changes the arthrotic knees, darkens them, and leaves the healthy ones."""
    f, none = draw(2, 0), torch.zeros(BLOCK, 64, 64)
    with_, without = (
        torch.cat(list(render(g, 64, BLOCK, none, none))) for g in (f, {**f, name: torch.zeros(BLOCK)})
    )
    change, sick = (with_ - without), f["grade"] >= 2
    assert torch.equal(with_[f["grade"] == 0], without[f["grade"] == 0])
    assert (change[sick].flatten(1).amax(1) > 0.05).all()
    assert (change[sick].flatten(1).sum(1) > 0).all()


def test_texture_is_a_band():
    """Trabeculae: unit variance, without the slow and the one-pixel part of the noise."""
    noise = torch.randn(64, 96, 96, generator=torch.Generator().manual_seed(0))
    t = band_pass(noise)[:, 12:-12, 12:-12]
    assert abs(float(t.std()) - 1) < 0.02
    power = torch.fft.rfft2(t).abs().square().mean(0)  # frequencies k / 72 per pixel
    peak = power[0, 3:12].max()
    assert power[0, 0] < 0.05 * peak and power[0, 30:].max() < 0.05 * peak


def test_measured_joint_space_is_the_known_one(phantom, measured):
    """Both compartments within a tenth of a pixel on average: correlation 0.995, error 0.0012 of the side."""
    for name in ("joint_space", "joint_space_medial", "joint_space_lateral"):
        assert correlation(measured[name], phantom.factors[name]) > 0.98, name
        assert float((measured[name] - phantom.factors[name]).abs().mean()) < 0.0025, name
    assert correlation(measured["asymmetry"], phantom.factors["asymmetry"]) > 0.85
    assert correlation(measured["condyles"], phantom.factors["femur_width"]) > 0.9


def test_measured_grade(phantom, measured):
    """Grades overlap by construction (0.060 and 0.055 with jitter 0.006): 80 % right, never two apart."""
    off = (measured["grade"] - phantom.factors["grade"]).abs()
    assert float((off == 0).double().mean()) > 0.75 and float(off.max()) <= 1
    severe = phantom.factors["grade"] == 4
    assert float((measured["grade"][severe] == 4).double().mean()) > 0.9


def test_mirrored_knees_are_caught(phantom, measured):
    """Side right in 99 %; a flipped image has the opposite score and swaps right and left (control)."""
    right = ((measured["side"] > 0) == (phantom.factors["side"] > 0)).double().mean()
    assert float(right) >= 0.99
    flipped = measure(replace(phantom.images, pixels=phantom.images.pixels.flip(-1)))
    assert torch.allclose(flipped["side"], -measured["side"], atol=1e-6)
    assert torch.allclose(flipped["joint_space_left"], measured["joint_space_right"], atol=1e-6)


@pytest.mark.parametrize(("size", "least"), [(32, 0.75), (128, 0.98)])
def test_other_sizes(size, least):
    """At 128 as good as at 64; at 32, where the joint is two pixels wide, clearly worse."""
    p = make(256, seed=6, size=size)
    m = measure(p.images)
    assert correlation(m["joint_space"], p.factors["joint_space"]) > least
    assert float(((m["side"] > 0) == (p.factors["side"] > 0)).double().mean()) > 0.95


def test_shuffled_pixels_have_no_joint(phantom):
    """Negative control: the same grey values in random places tell neither side nor joint space."""
    order = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))
    pixels = phantom.images.pixels.flatten(2)[..., order].view_as(phantom.images.pixels)
    m = measure(replace(phantom.images, pixels=pixels))
    assert all(torch.isfinite(v).all() for v in m.values())
    assert abs(correlation(m["joint_space"], phantom.factors["joint_space"])) < 0.5
    assert 0.3 < float(((m["side"] > 0) == (phantom.factors["side"] > 0)).double().mean()) < 0.7


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_images_give_finite_numbers(value):
    """A collapsed generator must not break the report."""
    m = measure(Images(torch.full((2, 1, 32, 32), value), ImageSpec((32, 32))))
    assert all(torch.isfinite(v).all() for v in m.values()) and float(m["side"].abs().max()) < 1e-9


def test_impossible_requests():
    """The errors name what was asked and what is possible."""
    with pytest.raises(VerisimError, match=r"knee.make: n=0"):
        make(0)
    with pytest.raises(VerisimError, match=r"size=8; 2 sides of at least 16 pixels"):
        make(4, 0, 8)
    with pytest.raises(VerisimError, match=r"size=\(32, 32, 32\); 2 sides"):
        make(4, 0, (32, 32, 32))
    with pytest.raises(VerisimError, match=r"size=\(32, 48\); n >= 1 square"):
        make(4, 0, (32, 48))
    with pytest.raises(VerisimError, match=r"Unknown side of the knee phantom 'lef'.*'left'"):
        make(4, 0, 32, side="lef")
    with pytest.raises(VerisimError, match=r"shape \(1, 16, 16, 16\).*square knee"):
        measure(Images(torch.zeros(1, 1, 16, 16, 16), ImageSpec((16, 16, 16))))
