"""The growing brain: one subject at any age, volumes in closed form at each, identity that age leaves alone."""

import math

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.phantoms import PHANTOMS
from verisim.phantoms.growing_brain import (
    AGES,
    IDENTITY,
    STRUCTURES,
    at_age,
    identities,
    make,
    measures,
    scan,
    solids,
    spacing,
)
from verisim.phantoms.growing_brain_render import draw

measure = PHANTOMS["growing_brain"].measure


@pytest.fixture(scope="module")
def slices():
    return make(200, seed=5, size=64)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def counted(labels, unit):
    """Structure -> number of pixels with its code times the size of a pixel, (N,)."""
    return {name: (labels == k).flatten(1).sum(1) * unit for k, name in enumerate(STRUCTURES)}


def at(subjects, ages, seed=3):
    return at_age(identities(torch.tensor(subjects), seed), torch.tensor(ages))


def test_volumes_are_the_closed_forms_at_each_age():
    """Voxels of 1.3 mm counted at 26, 35 and 45 weeks: 3 %, small structures 8 %."""
    size = (108, 108, 108)
    f = at([0, 0, 1], [26.0, 35.0, 45.0])
    parts = [draw({k: v[i : i + 1] for k, v in f.items()}, size, spacing(size)).labels for i in range(3)]
    count, exact = counted(torch.cat(parts), spacing(size) ** 3 / 1000), measures(f, 3)
    for name in STRUCTURES[1:]:
        relative = 0.03 if name in ("csf", "cortex", "white_matter") else 0.08
        assert torch.allclose(count[name], exact[f"volume_{name}"], rtol=relative, atol=0.02), name


def test_areas_are_the_closed_forms_at_each_age():
    """The same in the middle plane, within 1 % and 0.02 cm^2."""
    f = at([4, 4, 5, 6], [26.0, 45.0, 31.0, 40.0])
    count = counted(draw(f, (450, 450), spacing((450, 450))).labels, spacing((450, 450)) ** 2 / 100)
    exact = measures(f, 2)
    for name in STRUCTURES[1:]:
        assert torch.allclose(count[name], exact[f"area_{name}"], rtol=0.01, atol=0.02), name


def test_volumes_add_up_and_grow():
    """The parts are the head; growth is the stated radius to the third power times the subject's own factor."""
    ages = torch.linspace(*AGES, 20)
    f = at_age(identities(torch.full((20,), 7), 1), ages)
    v = measures(f, 3)
    total = sum(v[f"volume_{name}"] for name in STRUCTURES[1:])
    assert torch.allclose(total, v["volume_head"], rtol=1e-5)
    assert all((v[f"volume_{name}"].diff() > 0).all() for name in ("head", "cortex", "white_matter"))
    radius = 28 + 1.54 * (ages - 26)
    ratio = v["volume_head"] / (4 / 3 * math.pi * radius**3 / 1000)
    assert torch.allclose(ratio, (f["size"] ** 3 * f["height"]), rtol=1e-5)
    share = v["volume_cortex"] / v["volume_head"]
    assert (share.diff() > 0).all()  # the cortex outgrows the rest


def test_circumference_is_the_perimeter_of_the_outline():
    """The elliptic integral equals the length of a polygon of 20,000 corners."""
    f = at([0, 1, 2], [26.0, 33.0, 45.0])
    t = torch.linspace(0, 2 * math.pi, 20_001, dtype=torch.float64)[:, None]
    a, b = f["axes"][:, 0].double(), f["axes"][:, 1].double()
    length = ((a * t.cos()).diff(dim=0).square() + (b * t.sin()).diff(dim=0).square()).sqrt().sum(0)
    assert torch.allclose(f["head_circumference"].double(), length, rtol=1e-6)
    assert 170 < float(f["head_circumference"].min()) and float(f["head_circumference"].max()) < 400


def test_a_subject_stays_itself():
    """Visits share every identity factor; other subjects do not; labels and patients name age and subject."""
    p = make(60, 2, 32, visits=3)
    for name in IDENTITY:
        v = p.factors[name].view(20, 3)
        assert torch.equal(v[:, 0], v[:, 1]) and torch.equal(v[:, 0], v[:, 2])
        assert len(v[:, 0].unique()) == 20
        lo, hi = IDENTITY[name]
        assert lo <= float(v.min()) and float(v.max()) <= hi
    assert p.images.patients[:4] == ("subject-0000",) * 3 + ("subject-0001",)
    ages = p.factors["age"].view(20, 3)
    assert (ages.diff(dim=1) >= 4.0 - 1e-4).all() and 26 <= float(ages.min()) and float(ages.max()) <= 45
    assert torch.equal(p.images.labels, (p.factors["age"] >= 37).long())


def test_identity_is_visible_and_age_independent():
    """Scaled to one size, a subject at two ages is more like itself than like another (negative control)."""
    ages = torch.tensor([34.0, 40.0])
    f = at_age(identities(torch.arange(12).repeat_interleave(2), 6), ages.repeat(12))
    f = {**f, "axes": f["axes"] * (40.0 / f["radius"])[:, None], "radius": torch.full((24,), 40.0)}
    x = draw({k: v for k, v in f.items()}, (64, 64), spacing((64, 64))).values.flatten(1)
    early, late = x[0::2], x[1::2]
    distance = torch.cdist(early, late)  # (12, 12)
    own = distance.diagonal()
    others = distance[~torch.eye(12, dtype=torch.bool)].view(12, 11)
    assert float((own < others.amin(1)).double().mean()) > 0.9


def test_a_scan_depends_on_subject_and_age_alone():
    """make and scan give the same image; order and company change nothing; another seed does."""
    p = make(9, 4, (24, 28, 24))
    subjects, ages = p.factors["subject"].long(), p.factors["age"]
    order = torch.tensor([8, 3, 0])
    q = scan(subjects[order], ages[order], 4, (24, 28, 24))
    assert torch.equal(q.images.pixels, p.images.pixels[order])
    assert torch.equal(q.segmentation, p.segmentation[order])
    assert all(torch.equal(v, p.factors[k][order]) for k, v in q.factors.items())
    assert not torch.equal(scan(subjects[order], ages[order], 5, (24, 28, 24)).images.pixels, q.images.pixels)


@pytest.mark.parametrize("n", [1, 3, 33])
def test_image_does_not_depend_on_n(slices, n):
    """Image i of a seed is the same in small and large sets, as in every phantom."""
    small = make(n, seed=5, size=64)
    assert torch.equal(small.images.pixels, slices.images.pixels[:n])
    assert all(torch.equal(v, slices.factors[k][:n]) for k, v in small.factors.items())


def test_structures_never_overlap():
    """At all ages the ventricles and deep grey matter lie apart, and inside of the deepest folds."""
    ages = torch.linspace(*AGES, 40)
    f = at_age(identities(torch.arange(400), 9), ages.repeat(10))
    s = solids(f)
    d = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    d = d / d.norm(dim=1, keepdim=True)
    for k in range(4):
        p = s.centre[:, k, None] + s.semi[:, k, None] * d
        for j in range(4):
            rho = ((p - s.centre[:, j, None]) / s.semi[:, j, None]).square().sum(2)
            assert j == k or float(rho.min()) > 1, (k, j)
        q = (p / f["axes"][:, None]).square()
        deepest = (q[..., 0] + q[..., 1]) / (1 - f["folding"][:, None]) + q[..., 2]
        assert (deepest.sqrt() < 0.9 - f["thickness"][:, None]).all()


@pytest.mark.parametrize("size", [(32, 32, 32), (24, 32, 28), (40, 48)])
def test_any_size(size):
    """Shape and spacing belong to the images; the largest head fits in."""
    p = scan(torch.arange(20), torch.full((20,), 45.0), 0, size)
    assert p.images.pixels.shape == (20, 1, *size) and p.segmentation.shape == (20, 1, *size)
    assert p.images.spec.spacing == (140 / min(size),) * len(size)
    border = torch.ones(size, dtype=torch.bool)
    border[(slice(1, -1),) * len(size)] = False
    assert not p.segmentation[:, 0][:, border].any()


def test_left_is_at_the_image_right():
    """Never mirrored: the left ventricle lies at larger x."""
    p = make(8, 1, 64)
    axis = torch.arange(64).float()
    right, left = (
        ((p.segmentation == k).float() * axis).sum() / (p.segmentation == k).sum()
        for k in (STRUCTURES.index("ventricle_right"), STRUCTURES.index("ventricle_left"))
    )
    assert float(left) > float(right) + 2


def test_measured_slices(slices):
    """Circumference to 0.3 mm, area to 0.3 %, ventricles to 12 %; age by size within two weeks."""
    m, f = measure(slices.images), slices.factors
    assert float((m["head_circumference"] - f["head_circumference"]).abs().mean()) < 0.3
    assert float((m["area_head"] / f["area_head"] - 1).abs().mean()) < 0.003
    assert correlation(m["area_ventricles"], f["area_ventricles"]) > 0.98
    assert float((m["area_ventricles"] / f["area_ventricles"] - 1).abs().mean()) < 0.12
    assert float((m["age"] - f["age"]).abs().mean()) < 1.2
    assert float((m["aspect"] - torch.minimum(f["aspect"], 1 / f["aspect"])).abs().mean()) < 0.005


@pytest.mark.parametrize(("size", "error"), [((32, 32, 32), 0.05), ((48, 48, 48), 0.01)])
def test_measured_volumes(size, error):
    """The same in volumes; the smallest heads fill few voxels of 4.4 mm."""
    p = make(24, 7, size)
    m, f = measure(p.images), p.factors
    assert float((m["volume_head"] / f["volume_head"] - 1).abs().mean()) < error
    assert float((m["head_circumference"] / f["head_circumference"] - 1).abs().mean()) < 0.01
    assert correlation(m["volume_ventricles"], f["volume_ventricles"]) > 0.9


def test_growth_is_measured_within_a_subject(slices):
    """Later visits have larger heads in the pixels, as in the factors; swapping them reverses it (control)."""
    m = measure(slices.images)["head_circumference"].view(100, 2)
    truth = slices.factors["head_circumference"].view(100, 2)
    assert (m.diff(dim=1) > 0).all() and (truth.diff(dim=1) > 0).all()
    assert torch.allclose(m.diff(dim=1), truth.diff(dim=1).double(), atol=1.5)


def test_shuffled_pixels_have_no_head(slices):
    """Negative control: the same grey values in random places tell another circumference."""
    order = torch.randperm(64 * 64, generator=torch.Generator().manual_seed(0))
    pixels = slices.images.pixels.flatten(2)[..., order].view_as(slices.images.pixels)
    m = measure(Images(pixels, slices.images.spec))
    assert all(torch.isfinite(v).all() for v in m.values())
    error = (m["head_circumference"] - slices.factors["head_circumference"]).abs().mean()
    assert float(error) > 30


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_images_give_finite_numbers(value):
    """A collapsed generator must not break the report."""
    m = measure(Images(torch.full((2, 1, 16, 16, 16), value), ImageSpec((16, 16, 16))))
    assert all(torch.isfinite(v).all() for v in m.values())


def test_impossible_requests():
    """The errors name what was asked and what is possible."""
    with pytest.raises(VerisimError, match=r"growing_brain.make: n=0"):
        make(0)
    with pytest.raises(VerisimError, match=r"visits=6, gap=4; .*fit into weeks 26 to 45"):
        make(4, 0, 32, visits=6)
    with pytest.raises(VerisimError, match=r"ages from 20 to 30; weeks 26 to 45"):
        scan(torch.tensor([0, 1]), torch.tensor([20.0, 30.0]))
    with pytest.raises(VerisimError, match=r"2 subjects and 1 ages"):
        scan(torch.tensor([0, 1]), torch.tensor([30.0]))
    with pytest.raises(VerisimError, match=r"size=8; 2 sides or 3 sides of at least 16"):
        make(2, 0, 8)
    with pytest.raises(VerisimError, match=r"shape \(3, 32, 32\).*one channel"):
        measure(Images(torch.zeros(1, 3, 32, 32), ImageSpec((32, 32), channels=3)))
