"""What users give that cannot work: one clear sentence, or finite output, from every sampler."""

import math

import pytest
import torch

from verisim.diffusion.inpainting import repaint
from verisim.diffusion.oracles import gaussian
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import SCHEDULES, TABLES, karras, make_sigmas
from verisim.errors import VerisimError

DATA = gaussian(0.3, 0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_denoiser_that_fails_is_named_with_its_noise_level(name, value):
    """NaN at one level stops the sampler there; it is not handed on to the end."""
    sigmas = make_sigmas("flow", 5)

    def denoise(x, sigma):
        x0 = DATA.denoise(x, sigma)
        if float(sigma[0]) < 0.5:
            x0[0] = value
        return x0

    with pytest.raises(VerisimError, match=r"NaN or Inf for 1 of 3 images at noise level 0\.\d+"):
        SAMPLERS[name].run(denoise, torch.ones(3, 1, 2, 2), sigmas)


def test_repaint_names_it_too():
    """Inpainting goes through the same check."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(VerisimError, match="NaN or Inf for 2 of 2"):
        repaint(lambda x, s: x * math.nan, torch.ones(2, 1), karras(3), torch.zeros(1, 1), mask)


@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3, 2), (2, 1, 2, 2, 2)])
def test_masks_of_everything_and_nothing(everything, shape):
    """Everything known: the image itself. Nothing: finite samples. 1D to 3D."""
    known = torch.full(shape, 0.25)
    mask = torch.full(shape, everything)
    sigmas = make_sigmas("angle", 10, 0.2)
    g = torch.Generator().manual_seed(0)
    y = repaint(
        DATA.denoise, float(sigmas[0]) * torch.randn(shape, generator=g), sigmas, known, mask, generator=g
    )
    assert (
        torch.equal(y, known) if everything else bool(torch.isfinite(y).all() and not torch.equal(y, known))
    )


@pytest.mark.parametrize("n", [0, -1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_no_steps(name, n):
    """0 and -1 steps are refused by every schedule."""
    with pytest.raises(VerisimError, match=f"{n} steps asked; a whole number of at least 1"):
        make_sigmas(name, n)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_thousand_and_one_steps(name):
    """A training grid says that it has 1000 and what to use instead; a formula just gives them."""
    if name in TABLES:
        with pytest.raises(VerisimError, match=r"1001 steps.*1\.\.\.1000 are possible.*karras"):
            make_sigmas(name, 1001)
    else:
        assert len(make_sigmas(name, 1001)) == 1002


def test_an_empty_noise_range():
    """sigma_min = sigma_max has no levels between."""
    with pytest.raises(VerisimError, match="0 < sigma_min < sigma_max"):
        karras(10, sigma_min=2.0, sigma_max=2.0)
