"""Maps go back to the grid they came from."""

import numpy as np
import pytest
import torch

from verisim.data.regrid import onto_grid
from verisim.data.resample import fit_image


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize(("size", "new"), [((9, 7), (12, 12)), ((10, 12, 9), (6, 8, 8))])
def test_a_ramp_comes_back(fit, size, new):
    """A linear image fitted to a model's grid and taken back is itself, where the grid reached and away from edges."""
    at = np.meshgrid(*[np.arange(s, dtype=np.float32) for s in size], indexing="ij")
    image = np.stack([sum(at) / 10])
    fitted, back = fit_image(image, new, fit)
    again = onto_grid(torch.from_numpy(np.nan_to_num(fitted)), back, size)
    known = onto_grid(torch.from_numpy((~np.isnan(fitted)).astype(np.float32)), back, size)
    inner = np.zeros(size, bool)
    inner[tuple(slice(2, -2) for _ in size)] = True
    inside = (known[0].numpy() > 0.999) & inner
    assert again.shape == (1, *size) and inside.any()
    assert np.abs(again[0].numpy() - image[0])[inside].max() < 0.06


def test_the_same_grid_is_untouched():
    x = torch.rand(1, 5, 6, 7)
    assert torch.allclose(onto_grid(x, np.eye(4), (5, 6, 7)), x)


def test_what_was_cut_away_is_background():
    """A crop of the middle says nothing about the borders: 0."""
    _, back = fit_image(np.ones((1, 20, 8), np.float32), (8, 8), "crop")
    again = onto_grid(torch.ones(1, 8, 8), back, (20, 8))
    assert not again[0, :5].any() and bool((again[0, 7:13] == 1).all())
