"""The Haar transform: orthonormal, exact against plain loops, a rotation of the folded image."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from verisim.errors import VerisimError
from verisim.nets.haar import haar, inverse_haar, mixing
from verisim.nets.unet import fold

CASES = [((8, 12), 1), ((8, 16), 2), ((8, 8), 3), ((4, 6, 8), 1), ((4, 8, 8), 2)]


def images(size, channels=2, n=3):
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("size", "levels"), CASES)
def test_it_is_orthonormal(size, levels):
    """Inverse = reconstruction, energy kept, and <haar x, y> = <x, inverse y>: the inverse is the transpose."""
    x = images(size)
    y = haar(x, levels)
    d = len(size)
    assert y.shape == (3, 2 * 2 ** (d * levels), *[s // 2**levels for s in size])
    torch.testing.assert_close(inverse_haar(y, levels), x, atol=1e-12, rtol=0)
    torch.testing.assert_close(y.square().sum(), x.square().sum())
    other = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close((y * other).sum(), (x * inverse_haar(other, levels)).sum())
    single = x.float()
    torch.testing.assert_close(inverse_haar(haar(single, levels), levels), single, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("size", "levels"), CASES)
def test_low_band_is_the_scaled_block_mean(size, levels):
    """The first C channels are 2^(d levels / 2) times the block means; every other band of a constant is 0."""
    x = images(size)
    pool = F.avg_pool2d if len(size) == 2 else F.avg_pool3d
    low = 2 ** (len(size) * levels / 2) * pool(x, 2**levels)
    torch.testing.assert_close(haar(x, levels)[:, :2], low)
    ones = haar(torch.ones(1, 1, *size, dtype=torch.float64), levels)
    assert float(ones[:, 1:].abs().max()) < 1e-12
    if len(size) == 3 and levels == 1:
        assert float(ones[0, 0, 0, 0, 0]) == pytest.approx(2.828427, abs=1e-6)  # spec 16-18, section 0.2


def test_bands_against_plain_loops():
    """Every band of a 4x4x2 volume, summed voxel by voxel with its sign, in the order LLL, LLH, LHL ..."""
    x = images((4, 4, 2), channels=1, n=1)
    y = haar(x)
    for band, high in enumerate(itertools.product((0, 1), repeat=3)):
        for i, j, k in itertools.product(range(2), range(2), range(1)):
            total = 0.0
            for a, b, c in itertools.product((0, 1), repeat=3):
                sign = (-1) ** (a * high[0] + b * high[1] + c * high[2])
                total += sign * float(x[0, 0, 2 * i + a, 2 * j + b, 2 * k + c]) / math.sqrt(8)
            assert float(y[0, band, i, j, k]) == pytest.approx(total, abs=1e-12)


def test_two_levels_transform_the_low_band_again():
    """Level 2 of the low band comes first; the details of level 1 are all there, folded."""
    x = images((8, 8), channels=1)
    one, two = haar(x), haar(x, 2)
    torch.testing.assert_close(two[:, :4], haar(one[:, :1]))
    torch.testing.assert_close(two[:, 4:], fold(one[:, 1:], 2))


def test_white_noise_stays_white():
    """The covariance of the bands of N(0, I) is the identity; of smooth images it is not (control)."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 1, 4, 4, generator=g)
    bands = haar(noise, 2).flatten(1)
    assert float((torch.cov(bands.T) - torch.eye(16)).abs().max()) < 0.05
    smooth = torch.randn(20_000, 1, 1, 1, generator=g).expand(-1, 1, 4, 4) + 0.1 * noise
    assert float((torch.cov(haar(smooth, 2).flatten(1).T) - torch.eye(16)).abs().max()) > 1


@pytest.mark.parametrize("dims", [2, 3])
def test_a_convolution_on_bands_is_a_rotated_one_on_folded_pixels(dims):
    """conv(haar x, W) = conv(fold x, W M): without a scale, wavelets are patch 2 in another basis."""
    x = images((6,) * dims, channels=1)
    conv = F.conv2d if dims == 2 else F.conv3d
    w = torch.randn(5, 2**dims, *[3] * dims, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rotated = torch.einsum("ok...,kj->oj...", w, mixing(dims))
    torch.testing.assert_close(conv(haar(x), w, padding=1), conv(fold(x, 2), rotated, padding=1))
    assert not torch.allclose(conv(haar(x), w, padding=1), conv(fold(x, 2), w, padding=1))


def test_sizes_that_do_not_halve_are_refused():
    """One sentence with the nearest sizes that do."""
    with pytest.raises(VerisimError, match=r"30x33 cannot be halved 1 time.*30x32 or 30x34"):
        haar(torch.zeros(1, 1, 30, 33))
    with pytest.raises(VerisimError, match=r"multiple of 4.*8x8x8 or 12x12x12"):
        haar(torch.zeros(1, 1, 10, 10, 10), 2)
    with pytest.raises(VerisimError, match="levels=0"):
        haar(torch.zeros(1, 1, 8, 8), 0)
    with pytest.raises(VerisimError, match="6 bands of 2 axes"):
        inverse_haar(torch.zeros(1, 6, 4, 4))
