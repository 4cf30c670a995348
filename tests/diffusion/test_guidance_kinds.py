"""Guidance by conditions of any kind, by a classifier and by a weaker network, where the answer is known."""

import math

import pytest
import torch

from verisim.diffusion.guidance import autoguidance, classifier_free, classifier_guided
from verisim.diffusion.oracles import Mixture, gaussian
from verisim.diffusion.samplers import SAMPLERS, euler
from verisim.diffusion.schedules import make_sigmas
from verisim.errors import VerisimError

KINDS = {  # condition, its null form; the mean of the data is 0.5 times the mean of the condition
    "class": (torch.tensor([1, 0, 1]), 2),
    "vector": (torch.tensor([[0.2, 0.4], [1.0, 0.0], [-1.0, -1.0]]), 0.0),
    "image": (torch.linspace(-1, 1, 12).view(3, 1, 2, 2), 0.0),
    "tokens": (torch.linspace(-1, 1, 24).view(3, 4, 2), torch.full((1, 4, 2), 0.1)),
    "dict": (
        {"vector": torch.tensor([[0.2], [1.0], [-1.0]]), "map": torch.linspace(-1, 1, 12).view(3, 1, 2, 2)},
        {"vector": 0.5, "map": torch.zeros(1, 1, 2, 2)},
    ),
}


def shift(condition):
    parts = condition.values() if isinstance(condition, dict) else [condition]
    return sum(p.float().flatten(1).mean(1) if p.ndim > 1 else p.float() for p in parts)


def denoise(x, sigma, condition):
    """Optimal for N(0.5 condition, 0.2^2)."""
    m = 0.5 * shift(condition).view(-1, *[1] * (x.ndim - 1))
    return m + gaussian(0.0, 0.2).denoise(x - m, sigma)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 2, 2), (3, 1, 2, 2, 2)])
def test_conditions_of_any_kind(kind, shape):
    """D_null + scale (D - D_null) for a class, vector, image, token sequence and a dict of them, 1D to 3D."""
    condition, null = KINDS[kind]
    x, sigma = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.7)
    if kind == "class":
        nothing = torch.full((3,), 2)
    elif kind == "dict":
        nothing = {"vector": torch.full((3, 1), 0.5), "map": torch.zeros(3, 1, 2, 2)}
    else:
        nothing = torch.full_like(condition, 0.1 if kind == "tokens" else 0.0)
    a, b = denoise(x, sigma, nothing), denoise(x, sigma, condition)
    assert not torch.allclose(a, b)
    guided = {s: classifier_free(denoise, s, null, limit=None) for s in (0.0, 1.0, 2.5)}
    assert torch.equal(guided[0.0](x, sigma, condition), a)
    assert torch.equal(guided[1.0](x, sigma, condition), b)
    torch.testing.assert_close(guided[2.5](x, sigma, condition), a + 2.5 * (b - a))


def test_conditions_that_do_not_match_are_refused():
    """A dict needs a null form for each of its parts, a tensor one that is no dict."""
    x, sigma = torch.zeros(3, 1), torch.ones(3)
    with pytest.raises(VerisimError, match=r"has \['map', 'vector'\], its null form \['vector'\]"):
        classifier_free(denoise, 2.0, {"vector": 0.0})(x, sigma, KINDS["dict"][0])
    with pytest.raises(VerisimError, match="one tensor, its null form a dict"):
        classifier_free(denoise, 2.0, {"vector": 0.0})(x, sigma, torch.zeros(3, 1))


# --- classifier guidance: eight Gaussians on a circle --------------------------------------------------

ANGLES = torch.arange(8) * math.pi / 4
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], 1).double()  # (8, 2)
WIDTH = 0.25


def logits(x, sigma):
    """log p(x | mode), (B, 8), up to a constant, at noise level sigma (B,)."""
    total = (WIDTH**2 + sigma**2)[:, None]
    return -0.5 * (x[:, None] - CENTRES).square().sum(2) / total


def circle(x, sigma):
    """The optimal denoiser of eight equal Gaussians."""
    k = (WIDTH**2 / (WIDTH**2 + sigma**2))[:, None, None]
    each = CENTRES + k * (x[:, None] - CENTRES)  # (B, 8, 2)
    return (logits(x, sigma).softmax(1)[..., None] * each).sum(1)


def log_prob(x, sigma, label):
    return logits(x, sigma).log_softmax(1).gather(1, label[:, None])[:, 0]


def clean_log_prob(x, sigma, label):
    """The control: a classifier that knows clean data only."""
    return log_prob(x, torch.zeros_like(sigma), label)


def drawn(classifier, scale, n=1500):
    sigmas = make_sigmas("flow", 40, 0.7)
    g = torch.Generator().manual_seed(0)
    x = float(sigmas[0]) * torch.randn(n, 2, generator=g, dtype=torch.float64)
    guided = classifier_guided(circle, classifier, scale, limit=None)
    label = torch.zeros(n, dtype=torch.long)
    y = euler(lambda x, s: guided(x, s, label), x, sigmas)
    hit = log_prob(y, torch.zeros(n, dtype=torch.float64), label).exp()
    return float(hit.mean()), y


def test_classifier_guidance_rises_and_narrows():
    """Spec 003, section 2.3: P(mode) rises with the scale and the spread falls; scale 1 gives the mode itself."""
    results = {s: drawn(log_prob, s) for s in (0.0, 1.0, 2.0, 4.0)}
    hits = [results[s][0] for s in results]
    assert hits == sorted(hits) and hits[0] == pytest.approx(1 / 8, abs=0.03) and hits[-1] > 0.99
    one = results[1.0][1]
    torch.testing.assert_close(one.mean(0), CENTRES[0], atol=0.03, rtol=0)
    assert float(one.std(0).mean()) == pytest.approx(WIDTH, rel=0.05)
    spreads = [float(results[s][1].var(0).sum()) for s in (1.0, 2.0, 4.0)]
    assert spreads == sorted(spreads, reverse=True)


def test_control_a_classifier_of_clean_images_is_worse():
    """Trained on clean data only, its gradients on noisy images mislead: fewer hits and a wrong spread."""
    hit, y = drawn(clean_log_prob, 1.0)
    good, _ = drawn(log_prob, 1.0)
    error = abs(float(y.std(0).mean()) - WIDTH) + float((y.mean(0) - CENTRES[0]).norm())
    assert error > 0.1 or hit < good - 0.05


def test_classifier_guidance_off_is_the_plain_model_bit_for_bit():
    """Scale 0 does not even call the classifier."""
    x, sigma = torch.randn(4, 2).double(), torch.full((4,), 0.5).double()

    def never(*_):
        raise AssertionError

    assert torch.equal(
        classifier_guided(circle, never, 0.0)(x, sigma, torch.zeros(4).long()), circle(x, sigma)
    )


# --- autoguidance ------------------------------------------------------------------------------------


def test_autoguidance_is_its_formula():
    """1 is the network alone (the weak one is not called), 0 the weak one, 3 the extrapolation, clipped."""
    x, sigma = torch.linspace(-2, 2, 5)[:, None], torch.full((5,), 0.5)
    strong, weak = gaussian(0.2, 0.2).denoise, gaussian(0.1, 0.5).denoise
    a, b = strong(x, sigma), weak(x, sigma)
    assert torch.equal(autoguidance(strong, None, 1.0)(x, sigma), a)
    torch.testing.assert_close(autoguidance(strong, weak, 0.0)(x, sigma), b)
    torch.testing.assert_close(autoguidance(strong, weak, 3.0, limit=None)(x, sigma), b + 3 * (a - b))
    assert float(autoguidance(strong, weak, 1e6)(x, sigma).abs().max()) <= 1.0


def test_autoguidance_undoes_a_fault_that_the_weak_network_has_twice():
    """If errors are in proportion (here 0.1 and 0.2 of the mean), scale 2 removes them exactly."""
    data = Mixture((-0.3, 0.5), (0.1, 0.2), (0.4, 0.6))

    def faulty(size):
        return lambda x, sigma: data.denoise(x, sigma) + size * torch.tanh(x)

    x, sigma = (
        torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None],
        torch.full((9,), 0.5, dtype=torch.float64),
    )
    guided = autoguidance(faulty(0.1), faulty(0.2), 2.0, limit=None)
    torch.testing.assert_close(guided(x, sigma), data.denoise(x, sigma))


@pytest.mark.parametrize("scale", [-1e6, -1.0, 0.0, 1.0, 1e6])
@pytest.mark.parametrize("kind", ["classifier", "auto"])
def test_every_sampler_stays_finite(kind, scale):
    """Any scale gives finite, if saturated, images with every sampler and step count."""
    data = gaussian(0.2, 0.2)

    def classifier(x, sigma, label):
        return -(x - 0.5).square().flatten(1).sum(1) / (1 + sigma**2)

    label = torch.zeros(2, dtype=torch.long)
    guide = classifier_guided(data.denoise, classifier, scale)
    if kind == "auto":
        auto = autoguidance(data.denoise, gaussian(0.0, 0.5).denoise, scale)
    for method in SAMPLERS.values():
        for n in (1, 10):
            sigmas = make_sigmas(method.schedule, n)
            x = float(sigmas[0]) * torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
            run = (lambda y, s: guide(y, s, label)) if kind == "classifier" else auto
            assert torch.isfinite(
                method.run(run, x, sigmas, generator=torch.Generator().manual_seed(1))
            ).all()


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_scales_that_are_no_numbers(scale):
    """NaN guidance would give NaN images."""
    with pytest.raises(VerisimError, match=r"autoguidance = .* must be finite"):
        autoguidance(circle, circle, scale)
    with pytest.raises(VerisimError, match="must be finite"):
        classifier_guided(circle, log_prob, scale)
    with pytest.raises(VerisimError, match="class labels"):
        classifier_guided(circle, log_prob, 1.0)(torch.zeros(1, 2).double(), torch.ones(1).double(), {})
