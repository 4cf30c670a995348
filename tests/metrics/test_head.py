"""Head circumference: analytic ellipsoids, rotation, scale, the phantom, refusals (spec 002, N)."""

import itertools
import math

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.metrics.head import measure_heads, perimeter
from verisim.phantoms import growing_brain

AXES = (50.0, 60.0, 45.0)  # mm, in the order (D, H, W)


def rotation(degrees, axis):
    a = math.radians(degrees)
    r = torch.eye(3, dtype=torch.float64)
    i, j = [k for k in range(3) if k != axis]
    r[i, i] = r[j, j] = math.cos(a)
    r[i, j], r[j, i] = -math.sin(a), math.sin(a)
    return r


def ellipsoid(axes=AXES, turn=None, size=(36, 36, 36), mm=(4.0, 4.0, 4.0), fine=3, rim=0.6):
    """A solid of brightness 0.6 to 1 on black, each voxel by the share of its volume inside (fine^3 points)."""
    fractions = [(torch.arange(s * fine, dtype=torch.float64) + 0.5) / fine - s / 2 for s in size]
    p = torch.stack(torch.meshgrid(*[f * m for f, m in zip(fractions, mm)], indexing="ij"))
    p = p - torch.tensor([1.3, -2.1, 0.7], dtype=torch.float64).view(3, 1, 1, 1)
    q = p if turn is None else torch.einsum("ij,jabc->iabc", turn.T, p)
    r = (q / torch.tensor(axes, dtype=torch.float64).view(3, 1, 1, 1)).square().sum(0)
    x = torch.where(r <= 1, rim + (1 - rim) * (1 - r).clamp(min=0), 0.0).float()
    x = torch.nn.functional.avg_pool3d(x[None, None], fine)
    return Images(2 * x - 1, ImageSpec(size, spacing=mm))


def test_perimeter():
    """A circle's, and one known to many digits (semi-axes 2 and 1: 9.688448220547676)."""
    assert perimeter(3, 3) == pytest.approx(6 * math.pi, rel=1e-12)
    assert perimeter(2, 1) == pytest.approx(9.688448220547676, rel=1e-12)


@pytest.mark.parametrize("mm", [(4.0, 4.0, 4.0), (5.0, 4.0, 3.5)])
@pytest.mark.parametrize("axes", [AXES, (58.0, 50.0, 50.0), (40.0, 62.0, 44.0)])
def test_ellipsoids_of_known_perimeter(axes, mm):
    """Error below 1 % of the perimeter and 3 % of the volume (10 voxels of radius, brighter inwards), whatever the voxels' shape."""
    made = measure_heads(ellipsoid(axes, size=(34, 38, 40), mm=mm))
    assert float(made.circumference) == pytest.approx(perimeter(max(axes[1:]), min(axes[1:])), rel=0.01)
    assert float(made.content) == pytest.approx(4 / 3 * math.pi * math.prod(axes) / 1000, rel=0.03)
    assert made.unit == "mm"


@pytest.mark.parametrize(("degrees", "axis"), itertools.product([-15, 8, 15], [0, 1, 2]))
def test_turns_change_nothing(degrees, axis):
    """Turned by up to 15 degrees about any axis: within 1 % of the truth."""
    made = measure_heads(ellipsoid(turn=rotation(degrees, axis)))
    assert float(made.circumference) == pytest.approx(perimeter(60, 45), rel=0.01)


def test_a_plain_slice_would_not_do():
    """Control: the section of a flat head turned by 15 degrees, taken across the scan's axis, is more than 3 % off."""
    flat = ellipsoid((35.0, 60.0, 45.0), rotation(15, 2))
    assert float(measure_heads(flat).circumference) == pytest.approx(perimeter(60, 45), rel=0.01)
    middle = Images(flat.pixels[:, :, 18], ImageSpec((36, 36), spacing=(4.0, 4.0)))
    assert abs(float(measure_heads(middle).circumference) / perimeter(60, 45) - 1) > 0.03


def test_monotone_in_scale():
    """Each 2 % of growth is seen, and a doubling doubles."""
    grown = [measure_heads(ellipsoid(tuple(a * k for a in AXES))) for k in (0.96, 0.98, 1.0, 1.02, 1.04)]
    rounds = [float(g.circumference) for g in grown]
    assert rounds == sorted(rounds) and rounds[-1] / rounds[0] == pytest.approx(1.04 / 0.96, rel=0.005)


@pytest.mark.parametrize("size", [(64, 64), (48, 48, 48)])
def test_growing_brains(size):
    """The phantom's circumference, which is exact, within 2 %; error's spread below 1 % of the mean; r > 0.99."""
    made = growing_brain.make(8, 0, size)
    found, truth = measure_heads(made.images).circumference, made.factors["head_circumference"].double()
    assert ((found / truth - 1).abs() < 0.02).all()
    assert float((found - truth).std()) < 0.01 * float(truth.mean())
    assert float(torch.corrcoef(torch.stack([found, truth]))[0, 1]) > 0.99


def test_what_lies_beside_the_head_and_in_it():
    """A bright mark in the corner and dark ventricles change nothing."""
    clean = ellipsoid()
    x = clean.pixels.clone()
    x[:, :, :3, :3, :3] = 1
    x[:, :, 16:19, 16:19, 16:19] = -1
    a, b = measure_heads(clean), measure_heads(Images(x, clean.spec))
    assert float(a.circumference) == pytest.approx(float(b.circumference), rel=1e-3)


def test_pixels_without_spacing():
    """Without spacing lengths count in pixels."""
    image = ellipsoid()
    plain = measure_heads(Images(image.pixels, ImageSpec(image.spec.size)))
    assert plain.unit == "pixels"
    assert float(plain.circumference) == pytest.approx(perimeter(60, 45) / 4, rel=0.01)


def test_refusals():
    """Empty and constant images, colour, impossible levels."""
    for value in (-1.0, 0.5):
        with pytest.raises(VerisimError, match=r"image 0 shows no head.*empty, constant or inverted"):
            measure_heads(Images(torch.full((1, 1, 16, 16), value), ImageSpec((16, 16))))
    with pytest.raises(VerisimError, match="one channel"):
        measure_heads(Images(torch.zeros(1, 3, 16, 16), ImageSpec((16, 16), 3)))
    with pytest.raises(VerisimError, match=r"level is 1; .*in \(0, 1\)"):
        measure_heads(ellipsoid(), 1.0)
