"""The head CT phantom: exact volumes of findings, masks by part, the stated window; readable from pixels."""

import math
from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS
from verisim.phantoms.closed_forms import ball_overlap, disc_overlap
from verisim.phantoms.head_ct import (
    CLASS_NAMES,
    FINDINGS,
    LESIONS,
    PARTS,
    SLICE_AT,
    STRUCTURES,
    WINDOW,
    draw,
    make,
    mask,
    measures,
    ventricles,
)
from verisim.phantoms.head_ct_measure import enclosed
from verisim.phantoms.head_ct_render import HU
from verisim.phantoms.head_ct_render import draw as paint
from verisim.phantoms.volume import spacing

measure = PHANTOMS["head_ct"].measure


@pytest.fixture(scope="module")
def slices():
    return make(384, seed=5, size=64)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def counted(labels, unit):
    """Structure -> number of pixels with its code times the size of a pixel, (N,)."""
    return {name: (labels == k).flatten(1).sum(1) * unit for k, name in enumerate(STRUCTURES)}


def test_overlap_formulas():
    """Known cases: half overlap of equal balls 5 pi / 12, containment, separation; discs by counting."""
    one = torch.ones(1, dtype=torch.float64)
    assert float(ball_overlap(one, one)) == pytest.approx(5 * math.pi / 12)
    assert float(ball_overlap(0.5 * one, 0.25 * one)) == pytest.approx(4 / 3 * math.pi / 8)
    assert float(ball_overlap(one, 2 * one)) == 0.0
    axis = torch.linspace(-2, 2, 2001, dtype=torch.float64)
    x, y = axis[None], axis[:, None]
    for a, b, d in ((1.0, 0.7, 0.9), (1.0, 1.5, 0.8), (0.5, 1.2, 0.3), (1.0, 0.4, 1.6)):
        both = ((x**2 + y**2 < a**2) & ((x - d) ** 2 + y**2 < b**2)).double().sum() * 4e-6
        exact = disc_overlap(a**2 * one, b**2 * one, d * one)
        assert float(exact) == pytest.approx(float(both), abs=2e-3)


@pytest.mark.parametrize("name", LESIONS)
def test_finding_volumes_are_exact(name):
    """Counting voxels of 2 mm (two heads) gives the volume of the finding within 4 % and 0.1 mL."""
    size = (86, 104, 82)
    f = {k: v[:2] for k, v in draw(3, 0, FINDINGS[name]).items()}
    labels = torch.cat([paint({k: v[i : i + 1] for k, v in f.items()}, size, 0.0).labels for i in range(2)])
    count, exact = counted(labels, spacing(size) ** 3 / 1000), measures(f)
    found = sum(count[f"{name}_{s}"] for s in ("right", "left"))
    assert torch.allclose(found, exact["volume_lesion"], rtol=0.04, atol=0.1), (found, exact["volume_lesion"])
    assert (exact["volume_lesion"] > 0).all()
    others = [n for n in LESIONS if n != name]
    assert not any(exact[f"volume_{n}_{s}"].any() for n in others for s in ("right", "left"))


def test_healthy_volumes_and_areas_are_exact():
    """Scalp, skull, fluid, both halves of the brain and both ventricles: 2 % in volume, 1 % in area."""
    size = (86, 104, 82)
    f = draw(3, 1, FINDINGS["normal"])
    one = {k: v[:1] for k, v in f.items()}
    exact, count = measures(one), counted(paint(one, size, 0.0).labels, spacing(size) ** 3 / 1000)
    for name in STRUCTURES[1:8]:
        assert torch.allclose(count[name], exact[f"volume_{name}"], rtol=0.02, atol=0.3), name
    size = (450, 360)
    f = {k: v[:4] for k, v in f.items()}
    for plane in (SLICE_AT, -20.0):
        exact, count = measures(f, plane), counted(paint(f, size, plane).labels, spacing(size) ** 2 / 100)
        for name in STRUCTURES[1:8]:
            assert torch.allclose(count[name], exact[f"area_{name}"], rtol=0.01, atol=0.06), (name, plane)


@pytest.mark.parametrize("name", LESIONS)
def test_finding_areas_are_exact_and_every_default_slice_shows_them(name):
    """The same in slices: 5 % or 0.03 cm^2; the default plane crosses each finding."""
    size = (450, 360)
    f = {k: v[:5] for k, v in draw(8, 2, FINDINGS[name]).items()}
    for plane in (SLICE_AT, 16.0):
        count, exact = counted(paint(f, size, plane).labels, spacing(size) ** 2 / 100), measures(f, plane)
        found = sum(count[f"{name}_{s}"] for s in ("right", "left"))
        assert torch.allclose(found, exact["area_lesion"], rtol=0.05, atol=0.03), (plane, found, exact)
        if plane == SLICE_AT:
            assert (exact["area_lesion"] > 0).all()


def test_findings_lie_where_they_belong():
    """On the stated side; blood within the skull, cracks within the bone; ventricles are left alone."""
    for name in LESIONS:
        f = {k: v[:4] for k, v in draw(5, 0, FINDINGS[name]).items()}
        quiet = {**f, "finding": torch.zeros(4)}
        with_, without = (paint(g, (64, 72, 60), 0.0).labels for g in (f, quiet))
        changed = with_ != without
        assert changed.flatten(1).any(1).all()
        for i in range(4):
            under = {STRUCTURES[c] for c in without[i][changed[i]].unique().tolist()}
            side = "left" if float(f["side"][i]) > 0 else "right"
            allowed = {"skull"} if name == "fracture" else {"csf", f"brain_{side}"}
            assert under <= allowed, (name, under)
            assert {STRUCTURES[c] for c in with_[i][changed[i]].unique().tolist()} == {f"{name}_{side}"}


def test_parts_of_the_label_map():
    """Left, right, skull: disjoint, lesions included; the lesion mask is exactly the findings."""
    p = make(48, 1, (48, 40))
    right, left, skull, lesion = (mask(p.segmentation, part) for part in ("right", "left", "skull", "lesion"))
    assert not (right & left).any() and not (right & skull).any() and not (left & skull).any()
    normal = p.images.labels == 0
    assert not lesion[normal].any() and (right[normal].sum() > 0) and (left[normal].sum() > 0)
    for i, label in enumerate(p.images.labels.tolist()):
        if 0 < label < 5:
            half = left if float(p.factors["side"][i]) > 0 else right
            assert (lesion[i] & ~half[i]).sum() == 0, CLASS_NAMES[label]
    with pytest.raises(VerisimError, match=r"Unknown part of the head 'top'"):
        mask(p.segmentation, "top")
    assert len(PARTS["lesion"]) == 10


def test_left_is_at_the_image_right():
    """Never mirrored: the left half of the brain lies at larger x."""
    p = make(8, 1, (24, 32, 24), findings="normal")
    axis = torch.arange(24).float()
    left, right = (
        (mask(p.segmentation, s) * axis).sum() / mask(p.segmentation, s).sum() for s in ("left", "right")
    )
    assert float(left) > float(right) + 4


def test_hounsfield_units_and_window():
    """Air and bone saturate, tissue has its HU plus noise; another window shows the same HU."""
    low, high = WINDOW
    p = make(16, 2, 128, findings="intraparenchymal")
    hu = (p.images.pixels + 1) / 2 * (high - low) + low
    for name, tissue in (("ventricle_left", "csf"),):
        inner = hu[p.segmentation == STRUCTURES.index(name)]
        assert abs(float(inner.median()) - HU[tissue]) < 4, name
    blood = torch.cat(
        [hu[p.segmentation == STRUCTURES.index(f"intraparenchymal_{s}")] for s in ("left", "right")]
    )
    assert abs(float(blood.median()) - HU["blood"]) < 4
    assert float(hu[p.segmentation == 0].median()) == low and float(hu[p.segmentation == 2].median()) == high
    wide = make(16, 2, 128, findings="intraparenchymal", window=(-1000.0, 1000.0))
    again = (wide.images.pixels + 1) * 1000 - 1000
    seen = (p.images.pixels.abs() < 1) & (wide.images.pixels.abs() < 1)
    assert torch.allclose(again[seen], hu[seen], atol=0.05)


@pytest.mark.parametrize(("size", "n"), [((64, 64), 21), ((20, 24, 20), 5), ((16, 16, 16), 17)])
def test_image_does_not_depend_on_n(size, n):
    """Image i, its labels and factors are the same in small and large sets; anatomy is apart from findings."""
    large, small = make(n + 3, 2, size), make(n, 2, size)
    assert torch.equal(small.images.pixels, large.images.pixels[:n])
    assert torch.equal(small.segmentation, large.segmentation[:n])
    assert all(torch.equal(v, large.factors[k][:n]) for k, v in small.factors.items())
    calm = make(n, 2, size, findings="normal")
    assert torch.equal(calm.factors["scale"], small.factors["scale"])
    assert not torch.equal(small.images.pixels, make(n, 3, size).images.pixels)


def test_class_shares():
    """A half normal, a tenth each finding; ventricles of both sides differ by a few per cent."""
    f = [draw(0, b, FINDINGS["mixed"]) for b in range(100)]
    share = torch.bincount(torch.cat([x["finding"] for x in f]).long()) / 1600
    assert torch.allclose(share, torch.tensor(FINDINGS["mixed"]), atol=4 * 0.5 / 40)
    v = ventricles(f[0]).volume()
    assert float((v[:, 0] / v[:, 1] - 1).abs().max()) < 0.2


def test_the_head_fits_in():
    """At the greatest scale, shift and turn no pixel of the border shows the head."""
    for size in ((24, 28, 24), (64, 64)):
        p = make(64, 4, size)
        border = torch.ones(size, dtype=torch.bool)
        border[(slice(1, -1),) * len(size)] = False
        assert not p.segmentation[:, 0][:, border].any()


def test_enclosed_region():
    """What sees bone in all four directions; nothing is enclosed by an open ring or without bone."""
    bone = torch.zeros(1, 9, 9, dtype=torch.bool)
    bone[0, 2:7, 2:7] = True
    bone[0, 3:6, 3:6] = False
    assert int(enclosed(bone).sum()) == 9 and bool(enclosed(bone)[0, 4, 4])
    bone[0, 2] = False
    assert not enclosed(bone).any() and not enclosed(torch.zeros(1, 9, 9, dtype=torch.bool)).any()


def test_measured_areas_and_side(slices):
    """Content of the skull within 1 %; ventricles within 12 %; blood is found, on the right side."""
    m, f = measure(slices.images), slices.factors
    assert float((m["area_intracranial"] / f["area_intracranial"] - 1).abs().mean()) < 0.01
    assert correlation(m["area_ventricles"], f["area_ventricles"]) > 0.95
    assert float((m["area_ventricles"] / f["area_ventricles"] - 1).abs().mean()) < 0.12
    inside = f["finding"] == CLASS_NAMES.index("intraparenchymal")
    assert correlation(m["area_blood"][inside], f["area_lesion"][inside]) > 0.95
    assert float((m["area_blood"] / f["area_lesion"] - 1).abs()[inside].mean()) < 0.25
    for k in (1, 2, 3):
        some = f["finding"] == k
        assert float((m["blood_side"][some].sign() == f["side"][some]).double().mean()) > 0.9, CLASS_NAMES[k]
    dry = (f["finding"] == 0) | (f["finding"] == 5)
    assert float(m["area_blood"][dry].mean()) < 0.05 < 0.3 < float(m["area_blood"][~dry].mean())


def test_measured_volumes():
    """The same in volumes of 64 x 64 x 64: content within 2 %, ventricles and blood in the right order."""
    p = make(10, 5, (64, 64, 64), findings="intraparenchymal")
    m, f = measure(p.images), p.factors
    assert float((m["volume_intracranial"] / f["volume_intracranial"] - 1).abs().mean()) < 0.02
    assert correlation(m["volume_ventricles"], f["volume_ventricles"]) > 0.95
    assert correlation(m["volume_blood"], f["volume_lesion"]) > 0.95
    assert (m["blood_side"].sign() == f["side"]).double().mean() > 0.9


def test_mirrored_heads_are_caught(slices):
    """Control: flipping the image negates the side of the blood."""
    m = measure(slices.images)
    flipped = measure(replace(slices.images, pixels=slices.images.pixels.flip(-1)))
    assert torch.allclose(flipped["blood_side"], -m["blood_side"], atol=1e-6)
    assert torch.allclose(flipped["area_blood"], m["area_blood"], atol=1e-6)


def test_shuffled_pixels_have_no_head(slices):
    """Negative control: the same grey values in random places enclose nothing of the right size."""
    order = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))
    pixels = slices.images.pixels.flatten(2)[..., order].view_as(slices.images.pixels)
    m = measure(replace(slices.images, pixels=pixels))
    assert all(torch.isfinite(v).all() for v in m.values())
    assert float((m["area_intracranial"] / slices.factors["area_intracranial"] - 1).abs().mean()) > 0.2


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_images_give_finite_numbers(value):
    """A collapsed generator must not break the report."""
    m = measure(Images(torch.full((2, 1, 16, 16, 16), value), ImageSpec((16, 16, 16))))
    assert all(torch.isfinite(v).all() for v in m.values()) and not m["volume_blood"].any()


def test_impossible_requests():
    """The errors name what was asked and what is possible."""
    with pytest.raises(VerisimError, match=r"head_ct.make: n=0"):
        make(0)
    with pytest.raises(VerisimError, match=r"window=\(80.0, 80.0\).*\(low, high\) in HU"):
        make(1, 0, 32, window=(80.0, 80.0))
    with pytest.raises(VerisimError, match=r"size=\(32,\); 2 sides or 3 sides"):
        make(1, 0, (32,))
    with pytest.raises(VerisimError, match=r"Unknown finding of the head CT phantom 'subdual'.*'subdural'"):
        make(1, 0, 32, findings="subdual")
    with pytest.raises(VerisimError, match=r"shape \(2, 32, 32\).*one channel"):
        measure(Images(torch.zeros(1, 2, 32, 32), ImageSpec((32, 32), channels=2)))
