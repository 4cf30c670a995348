"""Rigid registration: a known turn and shift is found again; without SimpleITK one sentence says what to install."""

import builtins

import numpy as np
import pytest
import torch

from verisim.data.register import register_rigid
from verisim.errors import VerisimError
from verisim.phantoms import head_ct, moved_heads


def test_missing_library_is_named(monkeypatch):
    """Also where SimpleITK is there: its import is made to fail."""
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "SimpleITK":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(VerisimError, match=r"pip install 'verisim\[registration\]'"):
        register_rigid(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8))


@pytest.mark.parametrize("size", [(48, 48), (24, 28, 26)])
def test_known_motion_is_found(size):
    """A head that was turned by 8 degrees in the plane and shifted comes back to within a pixel and a degree."""
    pytest.importorskip("SimpleITK")
    fixed = head_ct.make(1, seed=3, size=size, findings="normal").images.pixels[0]
    angle, shift = np.deg2rad(8.0), (2.0, -1.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # of (h, w)
    middle = (np.array(size[-2:]) - 1) / 2
    plane = np.stack(np.meshgrid(*[np.arange(n) for n in size[-2:]], indexing="ij"), -1)
    at = (plane - middle) @ turn.T + middle + shift  # pixel of the moved image -> pixel of the fixed one
    grid = torch.from_numpy(2 * at / (np.array(size[-2:]) - 1) - 1).flip(-1).float()
    planes = fixed.reshape(-1, 1, *size[-2:])
    moved = (
        torch.nn.functional.grid_sample(planes + 1, grid.expand(len(planes), -1, -1, -1), align_corners=True)
        - 1
    )
    moving = moved.view(fixed.shape)
    found = register_rigid(moving, fixed, (1.0,) * len(size))
    matrix = found.matrix[1:3, 1:3]
    assert abs(np.rad2deg(np.arctan2(matrix[0, 1], matrix[0, 0])) - np.rad2deg(angle)) < 1.0
    back = turn.T @ (middle - middle - shift) + middle  # where the fixed image's middle lies in the moved one
    centre = np.array([0 if len(size) == 2 else (size[0] - 1) / 2, *middle, 1])
    assert np.abs((found.matrix @ centre)[1:3] - back).max() < 1.0
    error = (found.pixels - fixed).abs().mean()
    assert float(error) < 0.4 * float((moving - fixed).abs().mean())
    with pytest.raises(VerisimError, match="shapes"):
        register_rigid(moving, fixed[0])


@pytest.mark.parametrize("size", [(48, 48), (24, 28, 26)])
def test_noise_and_large_pixels_do_not_hold_the_search(size):
    """Two scans of a head with noise of their own, pixels of several mm: ten degrees are found again to within half a pixel of the rim."""
    pytest.importorskip("SimpleITK")
    heads = moved_heads.make(2, 21, size)
    turn, shift = ((10.0,), (1.5, -1.0)) if len(size) == 2 else ((6.0, -5.0, 6.0), (0.5, 1.0, -1.0))
    there = moved_heads.rigid(size, turn, shift)
    head = np.argwhere(heads.scan(1)[0].numpy() > -500).astype(float)
    points = np.concatenate([np.zeros((len(head), 3 - len(size))), head, np.ones((len(head), 1))], 1)
    fixed, moving = (
        moved_heads.shown(heads.scan(1, m, s), head_ct.WINDOW) for m, s in ((None, 1), (there, 2))
    )
    found = register_rigid(moving, fixed, (heads.mm,) * len(size))
    off = np.linalg.norm((points @ (there @ found.matrix).T - points)[:, :3], axis=1)
    assert off.mean() < 0.5
