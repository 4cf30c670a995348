"""The chest phantom: the same for ever, exactly known, never mirrored, with the stated prevalences."""

import math
import re

import pytest
import torch

from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS
from verisim.phantoms.chest import BLOCK, CARDIOMEGALY, PREVALENCE, RANGES, draw, make


@pytest.fixture(scope="module")
def phantom():
    return make(192, seed=3, size=32)


def test_same_seed_same_pixels():
    """Determinism: a phantom is named by its seed."""
    a, b = make(5, 7, 32), make(5, 7, 32)
    assert torch.equal(a.images.pixels, b.images.pixels)
    assert all(torch.equal(a.factors[k], b.factors[k]) for k in a.factors)
    assert not torch.equal(a.images.pixels, make(5, 8, 32).images.pixels)


@pytest.mark.parametrize("n", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 131])
def test_image_does_not_depend_on_n(phantom, n):
    """Image i is the same in a small and in a large set, so sets of different size can be compared."""
    small = make(n, seed=3, size=32)
    assert len(small) == n
    assert torch.equal(small.images.pixels, phantom.images.pixels[:n])
    assert all(torch.equal(v, phantom.factors[k][:n]) for k, v in small.factors.items())


def test_threads_change_nothing(phantom):
    """The number of threads is no part of the definition."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(make(70, seed=3, size=32).images.pixels, phantom.images.pixels[:70])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [16, 17, 33, 64, 128])
def test_any_size_shows_the_same_anatomy(size):
    """Factors do not depend on the size; pixels are finite and within [-1, 1] (Images checks them)."""
    p = make(3, seed=1, size=size)
    assert p.images.spec.size == (size, size) and p.images.spec.modality == "phantom-chest"
    assert p.images.pixels.dtype == torch.float32 and float(p.images.pixels.abs().max()) <= 1
    assert torch.equal(p.factors["cardiothoracic_ratio"], make(3, 1, 16).factors["cardiothoracic_ratio"])


@pytest.mark.parametrize("n, size", [(-1, 64), (0, 64), (4, 15), (4, (32, 48)), (4, (32, 32, 32))])
def test_impossible_requests(n, size):
    """The error names the values and the smallest size."""
    with pytest.raises(VerisimError, match=f"n={n}, size={re.escape(str(size))}.*square.*at least 16"):
        make(n, 0, size)


def test_size_as_a_pair():
    """32 and (32, 32) are the same request."""
    assert torch.equal(make(3, 1, 32).images.pixels, make(3, 1, (32, 32)).images.pixels)


def test_factor_ranges(phantom):
    """Factors stay within what spec 004 section 9 states."""
    f = phantom.factors
    assert all(v.shape == (192,) and torch.isfinite(v).all() for v in f.values())
    assert 0.40 <= float(f["cardiothoracic_ratio"].min()) and float(f["cardiothoracic_ratio"].max()) <= 0.65
    assert float(f["rotation"].abs().max()) <= 4
    assert set(f["rib_pairs"].tolist()) == {8.0, 9.0, 10.0}
    assert set(f["heart_side"].tolist()) == {1.0} and float(f["heart_x"].min()) > 0
    assert RANGES["nodule_radius"] == (0.02, 0.06)


def test_ratio_is_heart_over_chest(phantom):
    """The cardiothoracic ratio is the one of the two drawn widths, exactly."""
    f = phantom.factors
    chest = f["lung_left"] + f["lung_right"]
    assert torch.allclose(2 * f["heart_width"] / chest, f["cardiothoracic_ratio"], atol=1e-6)
    tilt = torch.deg2rad(f["heart_tilt"])
    extent = f["heart_long"] * (tilt.cos() ** 2 + (f["heart_roundness"] * tilt.sin()) ** 2).sqrt()
    assert torch.allclose(extent, f["heart_width"], atol=1e-6)  # half extent in [-1, 1] = fraction of width


def test_prevalence():
    """Each finding is as frequent as the spec says, within four standard errors of 12,800 draws."""
    blocks = [draw(0, b, True) for b in range(200)]
    n = 200 * BLOCK
    beta_tail = 0.4**5 + 5 * 0.6 * 0.4**4  # P(Beta(2, 4) > 0.6)
    for name, p in {**PREVALENCE, "cardiomegaly": beta_tail}.items():
        rate = float(torch.cat([b[name] for b in blocks]).mean())
        assert abs(rate - p) < 4 * math.sqrt(p * (1 - p) / n), (name, rate, p)


def test_labels_say_whether_anything_is_found(phantom):
    """Label 1 if and only if one of the five findings is present; absent findings have no place."""
    f = phantom.factors
    any_finding = torch.stack([f[k] for k in (*PREVALENCE, "cardiomegaly")]).amax(0)
    assert torch.equal(phantom.images.labels, any_finding.long())
    assert torch.equal(f["cardiomegaly"] == 1, f["cardiothoracic_ratio"] > CARDIOMEGALY)
    assert not f["nodule_radius"][f["nodule"] == 0].any()
    assert set(PHANTOMS["chest"].class_names) == {"no finding", "finding"}


def test_healthy_only():
    """findings=False: label 0 for all, the rest of the anatomy unchanged."""
    healthy, mixed = make(128, 3, 16, findings=False), make(128, 3, 16)
    assert not healthy.images.labels.any() and mixed.images.labels.any()
    assert torch.equal(healthy.factors["lung_left"], mixed.factors["lung_left"])
    assert float(healthy.factors["cardiothoracic_ratio"].max()) <= CARDIOMEGALY


@pytest.mark.parametrize("name", list(PREVALENCE))
def test_findings_are_visible_where_the_factors_say(name):
    """Switching one finding off in the factors changes pixels there, and brightens, never darkens."""
    import verisim.phantoms.chest_render as chest_render

    drawn = next(d for b in range(50) if (d := draw(1, b, True))[name].any())
    quiet = torch.zeros(BLOCK, 64, 64)
    without = {**drawn, name: torch.zeros(BLOCK)}
    on = torch.cat(list(chest_render.render(drawn, 64, BLOCK, quiet)))
    off = torch.cat(list(chest_render.render(without, 64, BLOCK, quiet)))
    present = drawn[name] == 1
    change = on - off
    assert torch.equal(on[~present], off[~present])
    assert (change[present].flatten(1).amax(1) > 0.05).all() and float(change.min()) > -0.02
    if name in ("nodule", "opacity"):
        i = int(present.nonzero()[0])
        weight = change[i].clamp(min=0)
        axis = (torch.arange(64) + 0.5) / 32 - 1
        x, y = (weight.sum(0) * axis).sum() / weight.sum(), (weight.sum(1) * axis).sum() / weight.sum()
        assert abs(float(x - drawn[f"{name}_x"][i])) < 0.06 and abs(float(y - drawn[f"{name}_y"][i])) < 0.06
