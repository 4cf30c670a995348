"""Crops that know where they come from, and half resolution: exact identities and the trapezoid."""

import pytest
import torch

from verisim.data.patches import coordinates, crop_starts, crops, halved, restored
from verisim.errors import VerisimError


@pytest.mark.parametrize("size", [(6, 9), (5, 6, 7)])
def test_crop_of_coordinates_is_the_slice_of_the_full_ramp(size):
    """A crop's ramps say where it was: its corner value is -1 + 2 s / (N - 1) on every axis."""
    ramps = coordinates(size)
    assert all(
        torch.equal(ramps[a].amin(), torch.tensor(-1.0)) and ramps[a].amax() == 1 for a in range(len(size))
    )
    starts = crop_starts(size, 4, 8, generator=torch.Generator().manual_seed(0))
    part = crops(ramps.expand(8, *ramps.shape), starts, (4,) * ramps.shape[0])
    assert part.shape == (8, len(size), *[4] * len(size))
    for row, first in zip(part, starts.tolist()):
        corner = row[(slice(None), *[0] * len(size))]
        assert torch.allclose(
            corner, torch.tensor([-1 + 2 * s / (n - 1) for s, n in zip(first, size)]), atol=1e-6
        )
        assert torch.equal(row, ramps[(slice(None), *[slice(s, s + 4) for s in first])])


def test_starts_are_a_trapezoid():
    """The sum of U{0..32} and U{0..96} (256 and 128 of the source): its exact probabilities; thirds; uniform."""
    rng = torch.Generator().manual_seed(0)
    n, error = 40000, {}
    for kind, short in (("trapezoid", 32), ("thesis", 43), ("uniform", 0)):
        s = crop_starts((256,), 128, n, kind, rng)[:, 0]
        a, b = torch.ones(short + 1) / (short + 1), torch.ones(129 - short) / (129 - short)
        exact = torch.zeros(129)
        for k in range(short + 1):
            exact[k : k + len(b)] += a[k] * b
        assert int(s.min()) >= 0 and int(s.max()) <= 128
        found = torch.bincount(s, minlength=129) / n
        error[kind] = float((found - exact).abs().sum())
        assert error[kind] < 0.06  # about sqrt(129 / n)
        assert kind == "uniform" or float((found - 1 / 129).abs().sum()) > 0.2  # and it is not uniform


def test_a_crop_as_large_as_the_image_is_the_image():
    assert torch.equal(crop_starts((8, 8), 8, 3), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(VerisimError, match=r"9 pixels a side does not fit into images of 8x16.*1 to 8"):
        crop_starts((8, 16), 9, 1)


@pytest.mark.parametrize("how", ["stride", "mean"])
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (4, 5, 6)])
def test_halving_and_back_keeps_ramps(how, size):
    """A linear image comes back exactly but for the far border, where the last value is held."""
    ramp = sum(
        torch.arange(s).float().view([-1 if k == a else 1 for k in range(len(size))])
        for a, s in enumerate(size)
    )
    x = ramp[None, None].contiguous()
    half = halved(x, how)
    assert half.shape[2:] == tuple(-(-s // 2) for s in size)
    again = restored(half, size, how)
    assert again.shape == x.shape
    inner = (slice(None), slice(None), *[slice(1, -2) for _ in size])
    assert torch.allclose(again[inner], x[inner], atol=1e-5)
    if how == "stride":  # values that were kept come back as they are
        even = (slice(None), slice(None), *[slice(None, None, 2)] * len(size))
        assert torch.allclose(again[even], half, atol=1e-6)
