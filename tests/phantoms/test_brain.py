"""The brain phantom: volumes and areas are the closed forms, effects are the stated ones, labels fit."""

import math
from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS, Phantom, brain, mr_contrast
from verisim.phantoms.brain import LESIONS, SLICE_AT, STRUCTURES, draw, make, measures
from verisim.phantoms.brain_render import draw as paint
from verisim.phantoms.brain_render import shells
from verisim.phantoms.volume import Frame, Solids, bias_field, ellipsoid, frame, rician, spacing

measure = PHANTOMS["brain"].measure
CODE = {name: k for k, name in enumerate(STRUCTURES)}


@pytest.fixture(scope="module")
def slices():
    return make(256, seed=5, size=64)


@pytest.fixture(scope="module")
def heads():
    """960 heads as factors alone: [factors, ellipsoids, volumes]."""
    parts = [draw(0, b, LESIONS["mixed"]) for b in range(60)]
    f = {k: torch.cat([p[0][k] for p in parts]) for k in parts[0][0]}
    solids = Solids(torch.cat([p[1].centre for p in parts]), torch.cat([p[1].semi for p in parts]))
    return f, solids, measures(f, solids)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def counted(labels, unit):
    """Structure -> number of pixels with its code times the size of a pixel, (N,)."""
    return {name: (labels == k).flatten(1).sum(1) * unit for k, name in enumerate(STRUCTURES)}


def test_volumes_are_the_closed_forms():
    """Counting 1.8 mm voxels of healthy and MS heads gives every region's stated volume within 2 or 5 %."""
    size, total, truth = (96, 112, 92), {}, {}
    for kind in ("none", "ms"):
        f, solids = draw(3, 0, LESIONS[kind])
        part = {k: v[:4] for k, v in f.items()}
        some = Solids(solids.centre[:4], solids.semi[:4])
        volume = spacing(size) ** 3 / 1000
        for i in range(4):
            one = {k: v[i : i + 1] for k, v in part.items()}
            labels = paint(
                one, Solids(some.centre[i : i + 1], some.semi[i : i + 1]), size, 0.0, ("T1",)
            ).labels
            for name, v in counted(labels, volume).items():
                total[name] = total.get(name, 0.0) + float(v)
        exact = measures(part, some)
        for name in STRUCTURES[1:]:
            on_white = exact["volume_ms_lesion"] if name == "white_matter" else 0.0
            truth[name] = truth.get(name, 0.0) + float((exact[f"volume_{name}"] - on_white).sum())
    for name, v in truth.items():
        if v > 0:
            assert abs(total[name] / v - 1) < (0.02 if v > 40 else 0.05), (name, total[name], v)


def test_areas_are_the_closed_forms():
    """The same in the plane of the slices, and in a lower one through thalamus and hippocampus."""
    size = (450, 360)
    f, solids = draw(4, 0, LESIONS["mixed"])
    healthy = f["diagnosis"] == 0
    for plane in (SLICE_AT, -13.0):
        labels = paint(f, solids, size, plane, ("T1",)).labels
        count = counted(labels[healthy], spacing(size) ** 2 / 100)
        exact = measures(f, solids, plane)
        for name in STRUCTURES[1:]:
            v = exact[f"area_{name}"][healthy]
            assert torch.allclose(count[name], v, rtol=0.01, atol=0.06), (name, plane, count[name], v)
    assert (exact["area_hippocampus_left"] > 0).all() and not exact["area_ventricle_left"].all()


def test_lesion_areas_are_exact():
    """Oedema, rim and core of tumours, and all MS lesions, as the factors say; seen in every such slice."""
    f, solids = draw(4, 1, LESIONS["mixed"])
    size = (450, 360)
    labels = paint(f, solids, size, SLICE_AT, ("T1",)).labels
    count, exact = counted(labels, spacing(size) ** 2 / 100), measures(f, solids, SLICE_AT)
    for name in ("oedema", "enhancing_tumour", "tumour_core", "ms_lesion"):
        assert torch.allclose(count[name], exact[f"area_{name}"], rtol=0.02, atol=0.03), name
    assert (exact["area_tumour_core"][f["diagnosis"] == 2] > 0.1).all()
    assert (exact["area_ms_lesion"][f["diagnosis"] == 1] > 0).all()
    assert not exact["area_oedema"][f["diagnosis"] < 2].any()


def surface(solids, k, points=120):
    """(N, points, 3) points on ellipsoid k."""
    d = torch.randn(points, 3, generator=torch.Generator().manual_seed(0))
    d = d / d.norm(dim=1, keepdim=True)
    return solids.centre[:, k, None] + solids.semi[:, k, None] * d


def test_structures_never_overlap(heads):
    """In 960 heads of all ages no deep structure or MS lesion touches another or leaves the white matter."""
    f, solids, _ = heads
    tumour = len(brain.SOLID_NAMES) - 3
    for k in range(tumour):
        some = f["diagnosis"] == 1 if brain.SOLID_NAMES[k] == "ms_lesion" else f["diagnosis"] >= 0
        p = surface(solids, k)[some]
        for j in range(tumour):
            semi = solids.semi[some, j, None]
            rho = ((p - solids.centre[some, j, None]) / semi.clamp(min=1e-3)).square().sum(2)
            if j != k:
                assert float(rho.min()) > 1, (brain.SOLID_NAMES[k], brain.SOLID_NAMES[j])
        x, y, z = (p[..., i, None, None] for i in range(3))
        part = {key: v[some] for key, v in f.items()}
        inside, cerebrum, white = (d for _, d in shells(part, Frame(x, y, z, 1.0)))
        if brain.SOLID_NAMES[k] in brain.SINGLE:
            assert float(cerebrum.min()) > 0 and float(inside.max()) < 0, brain.SOLID_NAMES[k]
        else:
            assert float(white.max()) < 0, brain.SOLID_NAMES[k]
    assert all(float(d.max()) < 0 for d in _tumour_in_skull(f, solids))


def _tumour_in_skull(f, solids):
    sick = f["diagnosis"] == 2
    x, y, z = (surface(solids, len(brain.SOLID_NAMES) - 3)[sick][..., i, None, None] for i in range(3))
    yield shells({k: v[sick] for k, v in f.items()}, Frame(x, y, z, 1.0))[0][1]


def test_cortex_encloses_white_matter_and_skull_encloses_all(heads):
    """Everywhere: inside white matter means inside the cerebrum means inside the skull."""
    f = {k: v[:64] for k, v in heads[0].items()}
    skull, cerebrum, white = (d for _, d in shells(f, frame(f, (24, 28, 24), 0.0)))
    assert (cerebrum[white < 0] < 0).all() and (skull[cerebrum < 0] < 0).all()


def test_the_warp_keeps_every_volume():
    """The map from the image to the head has Jacobian 1, though it moves points by millimetres."""
    f = draw(1, 0, LESIONS["none"])[0]
    one = {k: v[:2] for k, v in f.items()}
    one["warp"] = torch.ones_like(one["warp"])  # the strongest
    step = 0.5
    size = tuple(math.ceil(v / step) for v in (200.0, 160.0))
    a = frame(one, size, SLICE_AT)
    x, y = a.x.expand(2, 1, *size)[:, 0].double(), a.y[:, 0].double()
    gx = [(x.diff(dim=d) / a.voxel)[:, : size[0] - 1, : size[1] - 1] for d in (1, 2)]
    gy = [(y.diff(dim=d) / a.voxel)[:, : size[0] - 1, : size[1] - 1] for d in (1, 2)]
    det = gx[1] * gy[0] - gx[0] * gy[1]
    assert float((det - 1).abs().max()) < 5e-3
    assert float(gx[0].amax() - gx[0].amin()) > 0.05  # control: it does bend


def test_age_and_sex_effects(heads):
    """Slopes of the specification, recovered from 960 heads within four standard errors."""
    f, _, v = heads
    years, cube = f["age"] - 20, f["scale"] ** 3
    radius = (v["volume_ventricles"] / cube / (2 * 4 / 3 * math.pi * 0.9)) ** (
        1 / 3
    )  # 5 x 20 x 9 mm = 0.9 mL
    for name, y, start, slope in (
        ("ventricle", radius, 0.8, 0.012),
        ("hippocampus", (v["volume_hippocampus_left"] + v["volume_hippocampus_right"]) / cube, 1.0, -0.003),
        ("cortex", f["cortex_thickness"] / 0.17, 1.0, -0.004),
    ):
        unit = 1.0 if name != "hippocampus" else 2 * 4 / 3 * math.pi * 0.375
        design = torch.stack([torch.ones_like(years), years], 1).double()
        t = (y / unit).double()[:, None]
        beta = torch.linalg.lstsq(design, t).solution
        error = float((t - design @ beta).std()) / float(years.double().std()) / math.sqrt(len(years))
        assert abs(float(beta[1]) - slope) < 4 * error + 1e-5, name
        assert abs(float(beta[0]) - start) < 0.01, name
    men, women = f["scale"][f["sex"] == 1], f["scale"][f["sex"] == 0]
    assert abs(float(men.mean() - women.mean()) - 0.06) < 4 * 0.03 * math.sqrt(2 / 480)
    bare = {**f, "scale": torch.ones_like(f["scale"])}
    solids = Solids(heads[1].centre / f["scale"][:, None, None], heads[1].semi / f["scale"][:, None, None])
    for name, value in measures(bare, solids).items():  # every volume scales with the cube of the length
        assert torch.allclose(value * cube, v[name], rtol=1e-4, atol=1e-4), name


def test_volumes_add_up(heads):
    """Everything within the skull is one of the structures (lesions lie on top of them)."""
    f, _, v = heads
    lesions = ("ms_lesion", "oedema", "enhancing_tumour", "tumour_core")
    total = sum(v[f"volume_{name}"] for name in STRUCTURES[1:] if name not in lesions)
    skull = 4 / 3 * math.pi * math.prod(brain.AXES) * brain.SKULL**3 / 1000 * f["scale"] ** 3
    assert torch.allclose(total, skull, rtol=1e-4)
    assert all(float(x.min()) >= 0 for x in v.values())
    assert 1100 < float(skull.mean()) < 1900  # mL: the size of a head


def test_class_shares_and_kinds(heads):
    """A half healthy, a quarter each diagnosis; 'ms' draws MS heads only; anatomy does not depend on it."""
    share = torch.bincount(heads[0]["diagnosis"].long()) / 960
    assert torch.allclose(share, torch.tensor([0.5, 0.25, 0.25]), atol=4 * 0.5 / 31)
    for k, kind in enumerate(("none", "ms", "tumour")):
        p = make(20, 5, 16, lesions=kind)
        assert p.images.labels.unique().tolist() == [k]
        assert torch.equal(p.factors["age"], make(20, 5, 16).factors["age"])
    assert (make(20, 5, 16, lesions="ms").factors["lesion_count"] >= 1).all()


def test_contrasts_follow_the_signal_equations():
    """Orders of grey, white and fluid; FLAIR nulls fluid; gadolinium lights up the rim alone."""
    t1, t1c, t2, flair = (mr_contrast.brightness(c) for c in ("T1", "T1c", "T2", "FLAIR"))
    assert t1["csf"] < t1["grey"] < t1["deep"] < t1["white"]
    assert t2["csf"] > t2["grey"] > t2["white"] and t2["oedema"] > t2["grey"]
    assert flair["csf"] < 1e-6 and flair["ms"] > 1.2 * flair["grey"]
    assert max(t1c, key=t1c.get) == "enhancing" and t1["enhancing"] < t1["white"]
    assert mr_contrast.signal("white", "T1") == pytest.approx(0.77 * (1 - math.exp(-1)) * math.exp(-15 / 70))
    assert 1700 < mr_contrast.inversion_time() < 1710
    assert all(max(t.values()) == pytest.approx(0.85) for t in (t1, t1c, t2, flair))


def test_grey_values_are_the_tissues():
    """Without noise, pixels deep within a region have the tissue's brightness in every contrast."""
    f, solids = draw(2, 0, LESIONS["none"])
    contrasts = ("T1", "T2", "FLAIR")
    canvas = paint(f, solids, (256, 256), SLICE_AT, contrasts)
    for name, tissue in (("white_matter", "white"), ("ventricle_left", "csf"), ("putamen_right", "deep")):
        mask = canvas.labels == CODE[name]
        for c, contrast in enumerate(contrasts):
            median = float(canvas.values[:, c][mask].median())
            assert median == pytest.approx(mr_contrast.brightness(contrast)[tissue], abs=1e-5)


def test_left_is_at_the_image_right():
    """Never mirrored: the left half of every pair lies at larger x, in volumes and slices alike."""
    for p in (make(4, 1, (32, 32, 32), lesions="none"), make(16, 1, 64, lesions="none")):
        axis = torch.arange(p.segmentation.shape[-1]).float()
        for name in ("ventricle", "putamen"):
            left, right = (
                ((p.segmentation == CODE[f"{name}_{s}"]).float() * axis).sum()
                / (p.segmentation == CODE[f"{name}_{s}"]).sum()
                for s in ("left", "right")
            )
            assert float(left) > float(right) + 2


@pytest.mark.parametrize(("size", "n"), [((64, 64), 21), ((20, 24, 20), 5), ((16, 16, 16), 17)])
def test_image_does_not_depend_on_n(size, n):
    """Image i, its labels and factors are the same in small and large sets."""
    large, small = make(n + 3, 2, size), make(n, 2, size)
    assert torch.equal(small.images.pixels, large.images.pixels[:n])
    assert torch.equal(small.segmentation, large.segmentation[:n])
    assert all(torch.equal(v, large.factors[k][:n]) for k, v in small.factors.items())
    assert not torch.equal(small.images.pixels, make(n, 3, size).images.pixels)


@pytest.mark.parametrize("size", [(32, 32, 32), (24, 32, 24), (33, 40, 29), (48, 40)])
def test_any_size(size):
    """Shape, spacing and range belong to the images; the labels have the same grid; the head fits in."""
    p = make(2, 1, size, contrasts=("T1", "T2"))
    assert p.images.pixels.shape == (2, 2, *size) and p.segmentation.shape == (2, 1, *size)
    assert p.images.spec.spacing == (spacing(size),) * len(size)
    border = torch.ones(size, dtype=torch.bool)
    border[(slice(1, -1),) * len(size)] = False
    assert not p.segmentation[:, 0][:, border].any()
    assert p.segmentation.dtype == torch.uint8 and int(p.segmentation.max()) < len(STRUCTURES)


def test_contrasts_share_anatomy():
    """Multi-contrast sets show one head: the same labels and factors as T1 alone."""
    a, b = make(3, 1, (24, 24, 24)), make(3, 1, (24, 24, 24), contrasts=("T1", "T1c", "T2", "FLAIR"))
    assert torch.equal(a.segmentation, b.segmentation) and torch.equal(a.factors["age"], b.factors["age"])
    assert b.images.spec.channels == 4


def test_noise_and_bias():
    """Rician background has mean sigma sqrt(pi / 2); the bias field stays within its amplitude."""
    noise = rician(torch.zeros(100_000), 0.02, torch.Generator().manual_seed(0))
    assert float(noise.mean()) == pytest.approx(0.02 * math.sqrt(math.pi / 2), rel=0.01)
    w = 2 * torch.rand(8, 6, generator=torch.Generator().manual_seed(0)) - 1
    field = bias_field(w, torch.full((8,), 0.15), (8, 9, 10))
    assert float((field - 1).abs().max()) <= 0.15 + 1e-6 and float(field.std()) > 0.01
    assert torch.equal(bias_field(w, torch.zeros(8), (8, 9, 10)), torch.ones(8, 1, 8, 9, 10))


def test_distance_to_an_ellipsoid():
    """Zero on the surface, the radius of a sphere at its centre's neighbourhood in sign, first order near it."""
    z, y, x = (t[None] for t in torch.meshgrid(*[torch.linspace(-9, 9, 37)] * 3, indexing="ij"))
    d = ellipsoid(Frame(x, y, z, 0.5), torch.zeros(1, 3), torch.full((1, 3), 5.0))
    r = (x**2 + y**2 + z**2).sqrt()
    near = (r - 5).abs() < 0.5
    assert torch.allclose(d[near], (r - 5)[near], atol=0.03)
    assert torch.equal(d < 0, r < 5)


@pytest.mark.parametrize(("size", "error"), [((32, 32, 32), 0.06), ((48, 64, 48), 0.03)])
def test_measured_volumes(size, error):
    """Volumes in mL from pixels alone, bias field and noise included: correlation 0.99, ventricles to 6 or 3 %."""
    p = make(20, 7, size, lesions="none")
    m, f = measure(p.images), p.factors
    assert correlation(m["volume_ventricles"], f["volume_ventricles"]) > 0.99
    assert float((m["volume_ventricles"] / f["volume_ventricles"] - 1).abs().mean()) < error
    assert correlation(m["volume_brain"], f["volume_brain"]) > 0.99
    assert float((m["volume_brain"] / f["volume_brain"] - 1).abs().mean()) < 0.03


def test_measured_areas(slices):
    """The same in slices of 64 pixels, in cm^2; older heads have larger ventricles."""
    m, f = measure(slices.images), slices.factors
    calm = f["diagnosis"] < 2  # a tumour's core beside the ventricle is read as fluid
    for name in ("area_ventricles", "area_brain"):
        assert correlation(m[name][calm], f[name][calm]) > 0.99, name
        assert float((m[name] / f[name] - 1).abs()[calm].mean()) < 0.04, name
    assert correlation(m["area_ventricles"][calm], f["age"][calm]) > 0.9
    head = f["area_brain"] + f["area_csf"] + f["area_ventricles"]
    assert float((m["area_head"] / head - 1).abs().mean()) < 0.01


def test_mirroring_negates_the_ventricle_side(slices):
    """Left minus right changes its sign when the image is flipped."""
    m = measure(slices.images)
    flipped = measure(replace(slices.images, pixels=slices.images.pixels.flip(-1)))
    assert torch.allclose(flipped["ventricle_side"], -m["ventricle_side"], atol=1e-6)
    truth = slices.factors["area_ventricle_left"] - slices.factors["area_ventricle_right"]
    truth = truth / slices.factors["area_ventricles"]
    calm = slices.factors["diagnosis"] < 2
    assert correlation(m["ventricle_side"][calm], truth[calm]) > 0.5


def test_shuffled_pixels_have_no_ventricles(slices):
    """Negative control: the same grey values in random places no longer tell the ventricles."""
    order = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))
    pixels = slices.images.pixels.flatten(2)[..., order].view_as(slices.images.pixels)
    m = measure(replace(slices.images, pixels=pixels))
    assert all(torch.isfinite(v).all() for v in m.values())
    assert float((m["area_ventricles"] / slices.factors["area_ventricles"] - 1).abs().mean()) > 0.5


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_images_give_finite_numbers(value):
    """A collapsed generator must not break the report."""
    m = measure(Images(torch.full((2, 1, 16, 16, 16), value), ImageSpec((16, 16, 16))))
    assert all(torch.isfinite(v).all() for v in m.values())


def test_impossible_requests():
    """The errors name what was asked and what is possible."""
    with pytest.raises(VerisimError, match=r"brain.make: n=0"):
        make(0)
    with pytest.raises(VerisimError, match=r"size=\(8, 32, 32\); 2 sides or 3 sides of at least 16"):
        make(1, 0, (8, 32, 32))
    with pytest.raises(VerisimError, match=r"Unknown MR contrast 'T3'.*Did you mean"):
        make(1, 0, 32, contrasts=("T3",))
    with pytest.raises(VerisimError, match=r"Unknown kind of lesions of the brain phantom 'tumor'.*'tumour'"):
        make(1, 0, 32, lesions="tumor")
    p = make(2, 0, 16)
    with pytest.raises(VerisimError, match=r"segmentation has shape \(1, 1, 16, 16\).*\(2, 1, 16, 16\)"):
        Phantom(p.images, p.factors, p.segmentation[:1])
    with pytest.raises(VerisimError, match=r"shape \(1, 8, 8\).*at least 16 pixels"):
        measure(Images(torch.zeros(1, 1, 8, 8), ImageSpec((8, 8))))
