"""Dice, HD95 and calibration of the variance: closed forms, rules for empty masks, brute force."""

import math

import numpy as np
import pytest
import torch

from verisim.errors import VerisimError
from verisim.metrics.segmentation import dice, hd95, variance_calibration


def cube(shape, start, side):
    m = torch.zeros(1, 1, *shape, dtype=torch.bool)
    m[(0, 0, *[slice(s, s + side) for s in start])] = True
    return m


def test_shifted_cube():
    """Cubes of side 6 shifted by 2: Dice 4/6; every surface distance is at most the shift."""
    a, b = cube((16, 16, 16), (4, 4, 4), 6), cube((16, 16, 16), (6, 4, 4), 6)
    assert float(dice(a, b)) == pytest.approx(4 / 6, abs=1e-12)
    assert float(hd95(a, b)) == 2.0 and float(hd95(a, b, (3.0, 1.0, 1.0))) == 6.0  # a whole face is that far


def test_single_voxels_are_as_far_as_they_lie():
    """Two voxels: the distance between them, in mm."""
    a, b = cube((9, 9, 9), (1, 1, 1), 1), cube((9, 9, 9), (4, 5, 1), 1)
    assert float(hd95(a, b)) == pytest.approx(5.0)
    assert float(hd95(a, b, (2.0, 0.5, 7.0))) == pytest.approx(math.hypot(6, 2))
    a2, b2 = cube((9, 9), (1, 1), 1), cube((9, 9), (4, 5), 1)
    assert float(hd95(a2, b2)) == pytest.approx(5.0)


def ball(n, centre, radius):
    at = torch.stack(torch.meshgrid(*[torch.arange(n).float()] * 3, indexing="ij"))
    return ((at - torch.tensor(centre).view(3, 1, 1, 1)).square().sum(0) <= radius**2)[None, None]


def test_concentric_spheres():
    """Radii 4 and 9: Dice 2 r^3 / (r^3 + R^3), distance R - r, both up to the voxels' size."""
    a, b = ball(24, (11.5, 11.5, 11.5), 4), ball(24, (11.5, 11.5, 11.5), 9)
    assert float(dice(a, b)) == pytest.approx(2 * 64 / (64 + 729), rel=0.05)
    assert float(hd95(a, b)) == pytest.approx(5, abs=0.7)


def test_against_brute_force():
    """Random blobs: all pairs of surface voxels, 95th percentile of both lists together."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, 1, 7, 8, 6, generator=g) < 0.3 for _ in range(2))
    step = np.array([1.5, 0.7, 2.0])

    def surface(m):
        v = m[0, 0].numpy()
        padded = np.pad(v, 1)
        inside = np.ones_like(v)
        for axis in range(3):
            for shift in (-1, 1):
                inside &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(v & ~inside) * step

    far = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=2)
    lists = np.concatenate([far.min(1), far.min(0)])
    assert float(hd95(a, b, tuple(step))) == pytest.approx(np.percentile(lists, 95), abs=1e-9)
    assert float(hd95(b, a, tuple(step))) == pytest.approx(float(hd95(a, b, tuple(step))))


def test_rules_for_empty_masks():
    """Both empty: perfect. One empty: Dice 0, the diagonal in mm. One volume's case does not touch another's."""
    none, some = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool), cube((4, 4, 4), (1, 1, 1), 2)
    predicted, true = torch.cat([none, none, some, some]), torch.cat([none, some, none, some])
    assert dice(predicted, true).tolist() == [1, 0, 0, 1]
    far = math.sqrt(64 + 16 + 16)
    assert hd95(predicted, true, (2.0, 1.0, 1.0)).tolist() == pytest.approx([0, far, far, 0])


def test_calibration_by_hand():
    """Five voxels in three bins, the value 0 in its own; wrong ones have the higher variance in 5 of 6 pairs."""
    v = torch.tensor([0.0, 0.0, 0.05, 0.2, 0.25])
    wrong = torch.tensor([False, False, True, False, True])
    found = variance_calibration(v, wrong, bins=2)
    assert found.edges == (0.0, 0.0, 0.125, 0.25) and found.count == (2, 1, 2)
    assert found.error_rate == (0.0, 1.0, 0.5) and found.auroc == pytest.approx(5 / 6)
    assert variance_calibration(torch.zeros(5), wrong).auroc == 0.5  # all tied


def test_a_calibrated_variance_and_a_shuffled_one():
    """Errors drawn with the probability that the variance stands for: rates follow it; shuffled: AUROC 1/2."""
    g = torch.Generator().manual_seed(0)
    p = torch.rand(20000, generator=g)
    v, wrong = p * (1 - p), torch.rand(20000, generator=g) < torch.minimum(p, 1 - p)
    found = variance_calibration(v, wrong)
    assert list(found.error_rate[1:]) == sorted(found.error_rate[1:]) and found.auroc > 0.65
    shuffled = variance_calibration(v[torch.randperm(20000, generator=g)], wrong)
    assert shuffled.auroc == pytest.approx(0.5, abs=0.02)


def test_nothing_wrong_gives_no_number():
    """Without errors there is no AUROC, and JSON gets None."""
    found = variance_calibration(torch.rand(10) / 4, torch.zeros(10, dtype=torch.bool))
    assert math.isnan(found.auroc) and found.as_dict()["auroc"] is None


def test_bad_input():
    a = torch.zeros(1, 1, 4, 4)
    with pytest.raises(VerisimError, match="same grid"):
        dice(a, torch.zeros(1, 1, 4, 5))
    with pytest.raises(VerisimError, match="2 positive numbers"):
        hd95(a, a, (1.0, 1.0, 1.0))
    with pytest.raises(VerisimError, match="one each"):
        variance_calibration(torch.zeros(3), torch.zeros(4))
