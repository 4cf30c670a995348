"""Slice consistency on volumes whose numbers are known, and the golden numbers of total variation along slices."""

import math

import numpy as np
import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.metrics.slices import slice_consistency, stripes, through_plane
from verisim.models.diffusion.slice_tv import smooth_slices
from verisim.phantoms import PHANTOMS


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def ramp(*slopes):
    """A volume linear along each axis."""
    axes = [s * torch.arange(6.0) for s in slopes]
    return sum(a.view(-1, *[1] * (2 - i)) for i, a in enumerate(axes))[None, None]


def test_golden_ratios_of_ramps():
    """Slopes a, b, c give a / ((b + c) / 2) along each axis; straight ramps have no stripes."""
    x = ramp(2.0, 1.0, 3.0)
    assert [float(through_plane(x, k)) for k in range(3)] == pytest.approx([1.0, 0.4, 2.0])
    assert float(stripes(x)) == pytest.approx(0, abs=1e-12)
    assert float(through_plane(ramp(0.0, 1.0, 1.0))) == 0.0
    assert math.isinf(float(through_plane(ramp(1.0, 0.0, 0.0))))
    assert math.isnan(float(through_plane(torch.zeros(1, 1, 4, 4, 4)))) and math.isnan(
        float(stripes(torch.zeros(1, 1, 4, 4, 4)))
    )


def test_golden_stripes():
    """Slices -1, 1, -1, 1: each differs by 2 from the mean of its neighbours, and the deviation is 1."""
    z = torch.tensor([-1.0, 1.0] * 3).view(1, 1, 6, 1, 1).expand(1, 1, 6, 4, 4)
    assert float(stripes(z)) == pytest.approx(2.0)
    assert float(stripes(z.movedim(2, 4), axis=2)) == pytest.approx(2.0)


def test_shuffled_and_jittered_slices_score_worse_than_real_ones():
    """Real against real holds 1; shuffled slices raise both measures, jitter raises the stripes; noise is the same all ways."""
    real = PHANTOMS["brain"].make(24, seed=1, size=(16, 20, 16)).images
    a, b = real.subset(torch.arange(12)), real.subset(torch.arange(12, 24))

    def score(x):
        return slice_consistency(Images(x.clamp(-1, 1), b.spec), b, seeded())

    same = score(a.pixels)
    assert all(e.value == 1 for e in score(b.pixels).values())
    assert all(0.85 < e.value < 1.15 for e in same.values()), same
    order = torch.randperm(16, generator=seeded(2))
    shuffled = score(a.pixels[:, :, order])
    assert all(shuffled[k].low > 1.5 > same[k].high for k in same)
    jitter = score(a.pixels + 0.2 * torch.randn(12, 1, 16, 1, 1, generator=seeded(3)))
    assert jitter["stripes"].low > 1.5 and jitter["through_plane"].low > 1
    repeated = score(a.pixels[:, :, 8:9].expand_as(a.pixels))
    assert repeated["through_plane"].high < 0.1
    noise = torch.rand(8, 1, 16, 16, 16, generator=seeded(4))
    torch.testing.assert_close(through_plane(noise), torch.ones(8).double(), atol=0.03, rtol=0)


def ellipsoid_brain():
    """48^3 in [0, 1]: two shells, two dark and two grey ellipsoids, smoothed by 0.7 voxels (spec 003, section 0.2)."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    v = np.zeros((48, 48, 48))

    def paint(centre, radius, grey):
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radius)) < 1
        v[inside] = grey

    paint((0, 0, 0), (0.85, 0.9, 0.75), 0.55)
    paint((0, 0, 0), (0.7, 0.75, 0.6), 0.85)
    for side in (-1, 1):
        paint((0.05, 0, 0.18 * side), (0.25, 0.4, 0.09), 0.2)
        paint((-0.1, 0.1, 0.35 * side), (0.12, 0.25, 0.1), 0.7)
    kernel = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.7**2))
    kernel /= kernel.sum()
    for axis in range(3):
        padded = np.pad(v, [(2, 2) if k == axis else (0, 0) for k in range(3)], "edge")
        v = sum(w * np.take(padded, range(i, i + 48), axis) for i, w in enumerate(kernel))
    return torch.from_numpy(v)


def test_golden_total_variation():
    """Spec 003, section 0.2: stripes 0.0050 and 0.0288; weight 0.05 takes 56 % of them, 38.3 dB; clean keeps 44.1 dB."""
    clean = ellipsoid_brain()
    jitter = clean * (1 + 0.05 * torch.from_numpy(np.random.default_rng(1).standard_normal((48, 1, 1))))
    smooth, kept = smooth_slices(torch.stack([jitter, clean])[:, None], 0.05)

    def db(a):
        return -10 * math.log10(float((a.squeeze() - clean).square().mean()))

    values = [float(stripes(v.view(1, 1, 48, 48, 48))) for v in (clean, jitter, smooth)]
    assert values[:2] == pytest.approx([0.0050, 0.0288], abs=5e-5)
    assert 1 - values[2] / values[1] == pytest.approx(0.56, abs=0.005)
    assert (db(jitter), db(smooth), db(kept)) == pytest.approx((34.5, 38.3, 44.1), abs=0.05)


def test_what_is_no_volume_is_refused():
    with pytest.raises(VerisimError, match=r"it takes volumes \(C, D, H, W\)"):
        through_plane(torch.zeros(1, 1, 8, 8))
    with pytest.raises(VerisimError, match="2 slices; at least 3"):
        stripes(torch.zeros(1, 1, 2, 8, 8))
    spec = ImageSpec((8, 8, 8))
    with pytest.raises(VerisimError, match="slice consistency"):
        slice_consistency(
            Images(torch.zeros(2, 1, 8, 8, 8), spec),
            Images(torch.zeros(2, 1, 8, 8, 4), ImageSpec((8, 8, 4))),
            seeded(),
        )
