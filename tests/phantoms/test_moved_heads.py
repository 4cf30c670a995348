"""Moved heads: the still one is the phantom, motions are exact, noise is fresh, masks move along."""

import numpy as np
import pytest
import torch

from verisim.data.align import carried, motion_of
from verisim.errors import VerisimError
from verisim.phantoms import head_ct, moved_heads


@pytest.mark.parametrize("size", [(32, 32), (24, 24, 24)])
def test_still_heads_are_the_phantoms(size):
    """Same anatomy: what differs from head_ct.make is noise, and the finer drawing of edges."""
    heads = moved_heads.make(3, 5, size)
    made = head_ct.make(3, 5, size, findings="normal")
    for k in range(3):
        x = moved_heads.shown(heads.scan(k), head_ct.WINDOW)
        assert float((x - made.images.pixels[k]).abs().mean()) < 0.1
        for part in moved_heads.PARTS:
            truth = head_ct.mask(made.segmentation[k], part)
            both = float((heads.part(k, part) & truth).sum())
            assert 2 * both / float(heads.part(k, part).sum() + truth.sum()) > 0.85
    with pytest.raises(VerisimError, match="part of the head"):
        heads.part(0, "lung")


def test_noise_is_fresh():
    """Two scans differ by noise of the phantom's size; the same seed gives the same scan."""
    heads = moved_heads.make(1, 0, (32, 32))
    a, b = heads.scan(0, seed=1), heads.scan(0, seed=2)
    assert torch.equal(a, heads.scan(0, seed=1))
    assert float((a - b).std()) == pytest.approx(5 * 2**0.5, rel=0.05)


def test_motions_are_rigid_and_exact():
    """Turn and shift as asked for; a quarter turn moves whole pixels; there and back is the identity."""
    size = (20, 22, 24)
    there = moved_heads.rigid(size, (6.0, 0.0, 8.0), (1.0, 2.0, -2.0))
    assert motion_of(there, (2.0,) * 3, size) == pytest.approx((10.0, 6.0))
    assert np.allclose(there[:3, :3] @ there[:3, :3].T, np.eye(3))
    heads = moved_heads.make(1, 0, (32, 32))
    quarter = moved_heads.rigid((32, 32), (90.0,), (0.0, 0.0))
    still, turned = heads.part(0, "skull"), heads.part(0, "skull", quarter)
    assert torch.equal(torch.rot90(turned, 1, (1, 2)), still) or torch.equal(
        torch.rot90(turned, -1, (1, 2)), still
    )
    back = carried(turned.float(), np.linalg.inv(quarter), (32, 32), background=0.0)[0] > 0.5
    assert torch.equal(back, still) and not torch.equal(turned, still)
