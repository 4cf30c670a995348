"""Classifier-free guidance: its fixed points, its direction, and that nothing blows up."""

import math
from functools import partial

import pytest
import torch

from verisim.diffusion.guidance import classifier_free
from verisim.diffusion.oracles import Mixture, gaussian
from verisim.diffusion.samplers import SAMPLERS
from verisim.diffusion.schedules import make_sigmas
from verisim.errors import VerisimError

CLASSES = [gaussian(-0.5, 0.1), gaussian(0.5, 0.1)]
BOTH = Mixture((-0.5, 0.5), (0.1, 0.1), (0.5, 0.5))  # label 2, the null class
CALLS: list[int] = []


def denoise(x, sigma, label):
    CALLS.append(len(x))
    answers = torch.stack([d.denoise(x, sigma) for d in (*CLASSES, BOTH)])
    return answers[label, torch.arange(len(x))]


def setup():
    CALLS.clear()
    return torch.randn(4, 3), torch.full((4,), 0.7), torch.tensor([0, 1, 1, 0])


def test_scales_zero_and_one_are_exact_and_cost_one_evaluation():
    """0 ignores the class, 1 is the conditional model, bit for bit."""
    x, sigma, label = setup()
    assert torch.equal(classifier_free(denoise, 1.0, 2)(x, sigma, label), denoise(x, sigma, label))
    null = torch.full((4,), 2)
    assert torch.equal(classifier_free(denoise, 0.0, 2)(x, sigma, label), denoise(x, sigma, null))
    assert CALLS == [4, 4, 4, 4]


@pytest.mark.parametrize("scale", [-2.0, 0.5, 3.0])
def test_other_scales_are_the_formula_in_one_doubled_batch(scale):
    """D_null + scale (D_label - D_null), clipped only where it extrapolates."""
    x, sigma, label = setup()
    got = classifier_free(denoise, scale, 2)(x, sigma, label)
    assert CALLS == [8]
    a, b = denoise(x, sigma, torch.full((4,), 2)), denoise(x, sigma, label)
    expected = a + scale * (b - a)
    torch.testing.assert_close(got, expected if scale == 0.5 else expected.clamp(-1, 1))
    torch.testing.assert_close(classifier_free(denoise, scale, 2, limit=None)(x, sigma, label), expected)


@pytest.mark.parametrize("scale", [-1e6, -1.0, 0.0, 1.0, 2.0, 1e6])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_stays_finite_at_any_scale(name, scale):
    """Guidance of 1e6 gives saturated images, not NaN."""
    label = torch.tensor([0, 1])
    guided = classifier_free(denoise, scale, 2)
    for n in (1, 10, 50):
        sigmas = make_sigmas(SAMPLERS[name].schedule, n)
        x = float(sigmas[0]) * torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        out = SAMPLERS[name].run(
            lambda y, s: guided(y, s, label), x, sigmas, generator=torch.Generator().manual_seed(1)
        )
        assert torch.isfinite(out).all()


def test_guidance_moves_towards_the_class():
    """Samples of class 1 lie at 0.5 with scale 1, further out with 3, and at -0.5 with -3."""
    label = torch.ones(2000, dtype=torch.long)
    means = {}
    for scale in (-3.0, 1.0, 3.0):
        sigmas = make_sigmas("flow", 30)
        x = float(sigmas[0]) * torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
        guided = partial(classifier_free(denoise, scale, 2), label=label)
        means[scale] = float(SAMPLERS["euler"].run(guided, x, sigmas).mean())
    assert means[1.0] == pytest.approx(0.5, abs=0.02)
    assert means[3.0] > means[1.0] + 0.02
    assert means[-3.0] < -0.5


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(scale):
    """NaN guidance would give NaN images."""
    with pytest.raises(VerisimError, match="must be finite"):
        classifier_free(denoise, scale, 2)
