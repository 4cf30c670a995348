"""Rigid registration by correlation: a known motion is found again, in 2D, 3D, unequal voxels and a cut field of view."""

import numpy as np
import pytest
import torch

from verisim.data.align import align_rigid, carried, correlation, motion_of
from verisim.errors import VerisimError
from verisim.phantoms import growing_brain


def brain(size, subject=3, age=38.0):
    return growing_brain.scan(torch.tensor([subject]), torch.tensor([age]), 0, size).images.pixels[0]


def motion(size, mm, degrees, shift):
    """Pixels of the moved image -> pixels of the still one: turned about the middle by degrees in each plane."""
    dims = len(size)
    turn = np.eye(dims)
    planes = [(i, j) for i in range(dims) for j in range(i + 1, dims)]
    for (i, j), angle in zip(planes, np.deg2rad(degrees)):
        r = np.eye(dims)
        r[i, i] = r[j, j] = np.cos(angle)
        r[i, j], r[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ r
    mm, middle = np.array(mm), (np.array(size) - 1) / 2
    a = turn * mm / mm[:, None]
    matrix = np.eye(4)
    matrix[3 - dims : 3, 3 - dims : 3] = a
    matrix[3 - dims : 3, 3] = middle + np.array(shift) / mm - a @ middle
    return matrix


def two_visits(size, there, subject=3, other=None):
    """A scan, and one after a motion (of `other`, where given), both drawn from a finer image."""
    fine, coarse = (48,) * len(size), np.eye(4)
    for axis, n in enumerate(size, start=3 - len(size)):
        coarse[axis, axis], coarse[axis, 3] = 48 / n, (48 / n - 1) / 2
    first, second = brain(fine, subject), brain(fine, subject if other is None else other)
    return carried(first, coarse, size, finer=2)[0], carried(second, coarse @ there, size, finer=2)[0]


CASES = [
    ((24, 24), (1.0, 1.0), (12.0,), (3.0, -2.0)),
    ((24, 24, 24), (1.0, 1.0, 1.0), (9.0, -6.0, 8.0), (2.5, -1.5, 2.0)),
    ((24, 48, 48), (2.0, 1.0, 1.0), (8.0, 5.0, -10.0), (4.0, 2.0, -3.0)),  # thick slices
]


@pytest.mark.parametrize(("size", "mm", "degrees", "shift"), CASES)
def test_known_motion_is_found(size, mm, degrees, shift):
    """Everywhere in the head to within half of the longest side of a pixel; what is left of the difference is interpolation."""
    there = motion(size, mm, degrees, shift)
    fixed, moving = two_visits(size, there)
    found = align_rigid(moving, fixed, mm)
    head = (fixed[0] > -0.9).nonzero().double().numpy()  # (n, d)
    points = np.concatenate([np.zeros((len(head), 3 - len(size))), head, np.ones((len(head), 1))], 1)
    back = points @ (there @ found.matrix).T  # there and back again
    assert (np.abs(back - points)[:, 3 - len(size) : 3] * mm).max() < 0.5 * max(mm)
    before = float((moving - fixed).abs().mean())
    assert float((found.pixels - fixed).abs().mean()) < 0.4 * before
    assert found.correlation > 0.95 > correlation(moving, fixed, torch.ones_like(found.inside))


def test_another_field_of_view():
    """The moving scan lacks a quarter of the head: found all the same, and the missing part is said to be outside."""
    there = motion((24, 24, 24), (1.0,) * 3, (0.0, 0.0, 6.0), (0.0, 1.0, -1.0))
    fixed, whole = two_visits((24, 24, 24), there)
    found = align_rigid(whole[:, 8:], fixed)
    assert found.correlation > 0.95 and 0.5 < found.overlap < 0.8
    assert not found.inside[0, :6].any() and float(found.pixels[0, :6].max()) == -1.0
    assert found.matrix[0, 3] == pytest.approx(there[0, 3] - 8, abs=0.7)


def test_identity_and_motion():
    """A scan on itself stays where it is; the identity on a grid is exact; motion_of says degrees and mm."""
    x = brain((20, 20, 20))
    same, inside = carried(x, np.eye(4), (20, 20, 20))
    assert torch.allclose(same, x, atol=1e-5) and inside.all()
    coarse = carried(
        x, np.array([[2.0, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1]]), (10,) * 3, finer=2
    )[0]
    assert torch.allclose(coarse, torch.nn.functional.avg_pool3d(x, 2), atol=1e-5)
    found = align_rigid(x, x)
    assert motion_of(found.matrix, (1.0,) * 3, (20,) * 3) == pytest.approx((0, 0), abs=1.0)
    matrix = motion((20, 20, 20), (2.0, 1.0, 1.0), (10.0, 0.0, 0.0), (3.0, 0.0, 4.0))
    assert motion_of(matrix, (2.0, 1.0, 1.0), (20,) * 3) == pytest.approx((10.0, 5.0))


def test_nearest_pixels_keep_their_values():
    """Turned, an image of two values has no third one; linear interpolation makes some. On whole pixels both are the same."""
    x = (brain((20, 20)) > -0.5).float()
    there = motion((20, 20), (1.0, 1.0), (17.0,), (0.4, -0.3))
    sharp, inside = carried(x, there, (20, 20), nearest=True, background=0.0)
    smooth, _ = carried(x, there, (20, 20), background=0.0)
    assert set(sharp.unique().tolist()) == {0.0, 1.0} and len(smooth.unique()) > 10
    assert float((sharp - smooth).abs().max()) < 1 and not inside.all()
    whole = motion((20, 20), (1.0, 1.0), (0.0,), (3.0, -2.0))
    assert torch.allclose(
        carried(x, whole, (20, 20), nearest=True)[0], carried(x, whole, (20, 20))[0], atol=1e-5
    )


def test_another_head_does_not_fit_as_well():
    """Control: after registration, another subject correlates less than the same one does."""
    there = motion((20, 20, 20), (1.0,) * 3, (5.0, 0.0, 5.0), (1.0, 1.0, 0.0))
    own, other = (align_rigid(*reversed(two_visits((20,) * 3, there, 3, s))).correlation for s in (3, 8))
    assert own > other + 0.01


def test_refusals():
    """Shapes that do not fit, empty scans."""
    with pytest.raises(VerisimError, match=r"both must be \(C, H, W\) or both"):
        align_rigid(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8, 8))
    with pytest.raises(VerisimError, match="the moving scan is constant"):
        align_rigid(torch.zeros(1, 8, 8), torch.rand(1, 8, 8))
