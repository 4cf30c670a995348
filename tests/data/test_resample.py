"""Resampling: exact on constants, means and identities; geometry maps back to the same millimetres."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verisim.data.resample import area_matrix, fit_image, linear_matrix, resize


@settings(max_examples=40, deadline=None)
@given(n_in=st.integers(1, 60), n_out=st.integers(1, 60))
def test_rows_sum_to_one(n_in, n_out):
    """A constant image stays constant; a smaller one keeps the mean exactly."""
    for matrix in (area_matrix(n_in, n_out), linear_matrix(n_in, n_out)):
        assert np.allclose(matrix.sum(1), 1) and (matrix >= -1e-12).all()
    assert np.allclose(area_matrix(n_in, n_out).sum(0), n_out / n_in)


def test_identity_and_block_mean():
    """The same size changes nothing; half the size is the mean of 2 x 2 blocks; 3D works alike."""
    x = np.random.default_rng(0).normal(size=(2, 8, 6)).astype(np.float32)
    assert (resize(x, (8, 6)) == x).all()
    assert np.allclose(resize(x, (4, 3)), x.reshape(2, 4, 2, 3, 2).mean((2, 4)), atol=1e-6)
    y = np.random.default_rng(1).normal(size=(1, 4, 8, 6)).astype(np.float32)
    assert np.allclose(resize(y, (2, 4, 3)), y.reshape(1, 2, 2, 4, 2, 3, 2).mean((2, 4, 6)), atol=1e-6)


def test_fits():
    """'pad' keeps all and the aspect, 'crop' fills, 'stretch' fills and squeezes."""
    x = np.ones((1, 40, 20), np.float32)
    padded, _ = fit_image(x, (10, 10), "pad")
    assert np.isnan(padded[0, 0]).tolist() == [True, True] + [False] * 5 + [True] * 3
    for fit in ("crop", "stretch"):
        assert (fit_image(x, (10, 10), fit)[0] == 1).all()


@settings(max_examples=60, deadline=None)
@given(h=st.integers(2, 40), w=st.integers(2, 40), size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
       fit=st.sampled_from(["pad", "crop", "stretch"]))  # fmt: skip
def test_new_indices_map_to_old_places(h, w, size, fit):
    """A ramp in old pixel coordinates, resampled, reads the old coordinate of each new pixel."""
    ramp = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij")).astype(np.float32)
    out, back = fit_image(ramp, size, fit)
    assert out.shape == (2, *size)
    grid = np.stack([np.zeros(size), *np.meshgrid(*map(np.arange, size), indexing="ij"), np.ones(size)])
    want = np.einsum("ij,j...->i...", back, grid)[1:3]
    inside = np.isfinite(out[0]) & (want[0] >= 0) & (want[0] <= h - 1) & (want[1] >= 0) & (want[1] <= w - 1)
    assert (
        np.abs(out - want)[:, inside].max(initial=0) < 0.26
    )  # area cells are off by at most a quarter pixel


def test_world_position_survives():
    """Through a 3D resize by 2 the centre of the volume stays at the same millimetres."""
    affine = np.array([[0, 0, 0.7, 5], [0, 1.1, 0, 6], [2.0, 0, 0, 7], [0, 0, 0, 1]])
    _, back = fit_image(np.zeros((1, 8, 12, 20), np.float32), (4, 6, 10), "stretch")
    old = affine @ [3.5, 5.5, 9.5, 1]
    assert affine @ back @ [1.5, 2.5, 4.5, 1] == pytest.approx(old)
