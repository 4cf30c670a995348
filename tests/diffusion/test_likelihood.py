"""The variational bound against the closed-form probability of Gaussian data."""

import math

import pytest
import torch

from verisim.diffusion.likelihood import BIN, quantise, variational_bound
from verisim.diffusion.oracles import Mixture, gaussian
from verisim.errors import VerisimError


def truth(data, x):
    """-log2 of the probability of each grey value, mean per image, (B,)."""
    x = x.double()
    upper = data.cdf(x + BIN / 2).masked_fill(x > 1 - BIN / 2, 1.0)
    lower = data.cdf(x - BIN / 2).masked_fill(x < -1 + BIN / 2, 0.0)
    return -(upper - lower).log2().flatten(1).mean(1)


def draw(data, shape):
    n = math.prod(shape)
    x = data.quantiles(n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    return quantise(x.view(shape)).float()


def bound(data, x, **kwargs):
    kwargs = {"sigma_data": data.std, "draws": 32, "generator": torch.Generator().manual_seed(1)} | kwargs
    return variational_bound(data.denoise, x, **kwargs)


@pytest.mark.parametrize("shape", [(8, 1, 32, 32), (8, 1, 8, 8, 16)])
@pytest.mark.parametrize("data", [gaussian(0.1, 0.2), gaussian(0.0, 0.05), gaussian(-0.4, 0.15)])
def test_bound_is_above_the_truth_and_tight(data, shape):
    """With the optimal denoiser the bound exceeds -log2 p by less than 0.02 bits (and noise of 0.004)."""
    x = draw(data, shape)
    gap = float((bound(data, x).total - truth(data, x)).mean())
    assert -0.004 < gap < 0.02


def test_bound_on_three_modes():
    """The same for data that are not Gaussian, where the importance weights are not constant."""
    data = Mixture((-0.6, 0.1, 0.7), (0.05, 0.1, 0.05), (0.3, 0.5, 0.2))
    x = draw(data, (16, 1, 32, 32))
    gap = float((bound(data, x).total - truth(data, x)).mean())
    assert -0.01 < gap < 0.03


def test_the_bound_holds_where_data_saturate():
    """A tenth of the values cut off at black: the Gaussian denoiser is no longer optimal, the bound is one."""
    data = gaussian(-0.6, 0.3)
    x = draw(data, (8, 1, 32, 32))
    assert float((bound(data, x).total - truth(data, x)).mean()) > 0.1


def test_a_worse_denoiser_has_a_worse_bound():
    """A wrong mean or a wrong width of the model costs bits; the bound never rewards it."""
    data = gaussian(0.1, 0.2)
    x = draw(data, (8, 1, 16, 16))
    best = float(bound(data, x).total.mean())
    for wrong in (gaussian(0.3, 0.2), gaussian(0.1, 0.4), gaussian(0.1, 0.1)):
        assert float(variational_bound(wrong.denoise, x, sigma_data=0.2).total.mean()) > best + 0.1


def test_the_estimate_does_not_depend_on_where_levels_are_drawn():
    """sigma_data only places the draws (and the prior): a wrong one changes noise, not the bound."""
    data = gaussian(0.1, 0.2)
    x = draw(data, (8, 1, 32, 32))
    a = float(bound(data, x).total.mean())
    b = float(bound(data, x, sigma_data=0.4, sigma_max=32.0, draws=128).total.mean())
    assert b == pytest.approx(a, abs=0.02)


def test_control_uniform_noise_images_need_eight_bits_at_least():
    """Images of random grey values cannot be coded in less than 8 bits by any denoiser."""
    data = Mixture((0.0,), (0.577,), (1.0,))
    x = quantise(torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert float(bound(data, x).total.mean()) > 8


def test_reproducible_and_per_image():
    """The generator determines the result; each image gets its own number; the three parts add up."""
    data = gaussian(0.1, 0.2)
    x = torch.cat([draw(data, (1, 1, 16, 16)), draw(gaussian(0.8, 0.1), (1, 1, 16, 16))])
    a, b = bound(data, x), bound(data, x)
    assert torch.equal(a.total, b.total)
    assert a.total.shape == (2,)
    assert a.total.dtype == torch.float64
    assert a.total[1] > a.total[0] + 1  # the second does not belong to the data
    torch.testing.assert_close(a.total, a.prior + a.diffusion + a.reconstruction)
    assert (a.prior >= 0).all()


def test_extreme_grey_values_stay_finite():
    """All black, all white, and a denoiser that is certain of the wrong value."""
    x = torch.stack([torch.full((1, 8, 8), -1.0), torch.full((1, 8, 8), 1.0)])
    out = variational_bound(lambda y, s: torch.full_like(y, 0.9), x)
    assert torch.isfinite(out.total).all()


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.1), (0.0, 1.0), (2.0, 1.0)])
def test_bad_noise_range(low, high):
    """sigma_min = sigma_max and its like are refused."""
    with pytest.raises(VerisimError, match="0 < sigma_min < sigma_max"):
        variational_bound(gaussian(0, 1).denoise, torch.zeros(1, 1, 4), sigma_min=low, sigma_max=high)
