"""Wavelet and pixel representations of a diffusion model: exact against the same model on pixels."""

import math

import pytest
import torch

from verisim.data.spec import ImageSpec
from verisim.diffusion.oracles import gaussian
from verisim.diffusion.parametrisation import PARAMETRISATIONS, Parametrisation
from verisim.errors import CheckpointError, VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models import build_model
from verisim.models.diffusion.fill import fill_in
from verisim.models.diffusion.representation import Haar, Representation
from verisim.nets.unet import fold

SMALL = {
    "channels": (8, 16),
    "blocks": 1,
    "attention": (False, False),
    "steps": 3,
    "allow_small_features": True,
}
HAAR = {**SMALL, "representation": "haar"}
SIZES = [(16, 16), (8, 8, 8)]


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def images(size=(16, 16), n=6, seed=0):
    return (0.5 * torch.randn(n, 1, *size, generator=seeded(seed))).clamp(-1, 1)


def made(size=(16, 16), **settings):
    torch.manual_seed(0)
    model = build_model("diffusion", {**HAAR, **settings}, ImageSpec(size))
    model.prepare(images(size))
    return model.eval()


class Exact:
    """A network whose answer makes the model the exact denoiser of N(0, 0.3^2) pixels, on rotated ones too."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x, sigma, condition=None, net=None):
        return gaussian(0.0, 0.3).denoise(x, sigma), None


def exact(model):
    model.denoise_with_variance = Exact(model)
    return model


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("levels", "low_scale"), [(1, 1.0), (2, 1.0), (1, 1 / 3)])
def test_bands_and_back(size, levels, low_scale):
    """decode inverts encode; the low band alone is scaled; the spec of z is the shape of z."""
    plain, h = Haar(ImageSpec(size), levels), Haar(ImageSpec(size), levels, low_scale)
    x = images(size)
    z, y = h.encode(x), plain.encode(x)
    assert tuple(z.shape[1:]) == h.spec.shape and h.orthonormal == (low_scale == 1)
    torch.testing.assert_close(z[:, :1], low_scale * y[:, :1])
    torch.testing.assert_close(z[:, 1:], y[:, 1:])
    torch.testing.assert_close(h.decode(z), x, atol=1e-6, rtol=0)
    assert plain.agrees(h) == (low_scale == 1)


@pytest.mark.parametrize("size", SIZES)
def test_clipping_happens_in_image_space(size):
    """clip(z) is what encode makes of the clipped image; clipping the bands themselves is another thing."""
    h = Haar(ImageSpec(size), low_scale=1 / 3)
    x = 3 * images(size)
    z = h.encode(x)
    torch.testing.assert_close(h.clip(z), h.encode(x.clamp(-1, 1)), atol=1e-5, rtol=0)
    assert float(h.decode(h.clip(z)).abs().max()) < 1 + 1e-5
    assert float(h.decode(z.clamp(-1, 1)).abs().max()) > 1.01  # control


@pytest.mark.parametrize("size", SIZES)
def test_sampling_rotated_noise_gives_the_same_images(size):
    """With an exact denoiser and clipping, orthonormal bands walk the pixels' path: equal samples."""
    kind = {"parametrisation": "x0", "sampler": "euler", "schedule": "vp_linear", "clip": "on", "steps": 5}
    pixel = exact(build_model("diffusion", {**SMALL, **kind}, ImageSpec(size)).eval())
    bands = exact(made(size, **kind))
    z = torch.randn(2, *bands.representation.spec.shape, generator=seeded(3))
    from verisim.models.diffusion.walk import walk

    sigmas = pixel.sigmas()
    start = float(sigmas[0]) * z
    a = bands.representation.decode(walk(bands, None)(start, sigmas))
    b = walk(pixel, None)(bands.representation.decode(start), sigmas)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    sample = bands.sample(2, generator=seeded(3))
    torch.testing.assert_close(sample, a.clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_likelihood_is_that_of_the_image(size):
    """Orthonormal bands: both bounds equal those of the pixel model; a scaled low band is refused."""
    kind = {"parametrisation": "x0", "sampler": "ddpm", "schedule": "vp_linear", "clip": "off"}
    band = made(size, **kind)
    pixel = build_model("diffusion", {**SMALL, **kind, "sigma_data": band.sigma_data}, ImageSpec(size)).eval()
    a, b, x = exact(band), exact(pixel), images(size, 2, seed=5)
    torch.testing.assert_close(a.bits_per_dim(x, None, seeded()), b.bits_per_dim(x, None, seeded()))
    two = (m.chain_bound(x, None, seeded()).total for m in (a, b))
    torch.testing.assert_close(*two, atol=1e-4, rtol=1e-4)
    scaled = made(size, low_scale=1 / 3)
    for bound in (scaled.bits_per_dim, scaled.chain_bound):
        with pytest.raises(VerisimError, match=r"not defined.*haar representation is not orthonormal"):
            bound(x)


@pytest.mark.parametrize("name", sorted(PARAMETRISATIONS))
def test_a_deviation_per_channel(name):
    """Equal ones are the scalar; with different ones each channel is its own model, network fed alike."""
    x0, eps = torch.randn(3, 2, 4, 4, generator=seeded(1)), torch.randn(3, 2, 4, 4, generator=seeded(2))
    sigma = torch.tensor([0.1, 0.7, 4.0])

    def network(x, c_noise, label):
        assert c_noise.shape == (3,)
        return 0.3 * x + 0.1

    def both(p, channels=slice(None), gamma=5.0):
        a, e = x0[:, channels], eps[:, channels]
        x = a + sigma.view(-1, 1, 1, 1) * e
        return p.denoise(network, x, sigma), p.loss(network, a, e, sigma, None, gamma)

    alike = both(Parametrisation(name, torch.tensor([0.5, 0.5])))
    for got, want in zip(alike, both(Parametrisation(name, 0.5))):
        torch.testing.assert_close(got, want)
    d, loss = both(Parametrisation(name, torch.tensor([0.5, 0.05])))
    one, other = (both(Parametrisation(name, s), slice(i, i + 1)) for i, s in enumerate((0.5, 0.05)))
    torch.testing.assert_close(d, torch.cat([one[0], other[0]], 1))
    torch.testing.assert_close(loss, (one[1] + other[1]) / 2)


def test_an_edm_network_that_answers_nothing_is_right_in_every_band():
    """c_skip with a deviation per band is the exact denoiser of Gaussian bands; with one for all it is not."""
    stds = (0.9, 0.2, 0.1, 0.05)
    model = made(band_std=stds)
    z, sigma = torch.randn(2, 4, 8, 8, generator=seeded()), torch.tensor([0.1, 1.0])
    want = torch.cat([gaussian(0.0, s).denoise(z[:, [i]], sigma) for i, s in enumerate(stds)], 1)
    with torch.no_grad():
        torch.testing.assert_close(model.denoise(z, sigma), want)  # the fresh U-Net answers 0
    assert model.sigma_data == pytest.approx(0.9)
    same = made(band_std=(0.9,) * 4)
    assert float((same.denoise(z, sigma) - want).detach().abs().max()) > 0.1


def test_every_band_is_sampled_with_its_own_deviation():
    """Gaussian bands whose exact denoiser is c_skip come out with their deviations; with one for all they do not."""
    stds = torch.tensor([0.2, 0.1, 0.05, 0.01])

    def bands(given):
        model = made(band_std=given, steps=60)  # heun's own error is 6 to 12 per cent at 18
        z = model.representation.encode(model.sample(64, generator=seeded(4)))
        return z.transpose(0, 1).flatten(1).std(1)

    assert float((bands(tuple(stds.tolist())) / stds - 1).abs().max()) < 0.05
    assert float((bands((0.2,) * 4) / stds - 1).abs().max()) > 0.5


@pytest.mark.parametrize("size", SIZES)
def test_band_statistics_are_measured_stored_and_needed(size, tmp_path):
    """They are the bands' standard deviations, travel in the weights file, and nothing works without them."""
    fresh = build_model("diffusion", HAAR, ImageSpec(size))
    for use in (lambda: fresh.sample(1), lambda: fresh.training_loss(images(size), None)):
        with pytest.raises(VerisimError, match=r"no band statistics.*model\.prepare"):
            use()
    model = made(size)
    z = model.representation.encode(images(size))
    want = z.transpose(0, 1).flatten(1).double().std(1, unbiased=False)
    torch.testing.assert_close(model.representation.spread.double(), want, rtol=1e-5, atol=0)
    model.prepare(0.1 * images(size))  # measured once
    torch.testing.assert_close(model.representation.spread.double(), want, rtol=1e-5, atol=0)
    file = tmp_path / "w.safetensors"
    save_model(file, model, ModelCard("diffusion", HAAR, model.spec))
    again, _ = load_model(file)
    torch.testing.assert_close(again.sample(2, generator=seeded()), model.sample(2, generator=seeded()))
    other = ModelCard("diffusion", {**HAAR, "representation": "pixels", "patch": 2}, model.spec)
    save_model(file, model, other)
    with pytest.raises(CheckpointError, match=r"does not hold this model's pixels representation"):
        load_model(file)  # the networks have equal shapes: only the statistics tell them apart


@pytest.mark.parametrize("low_scale", [1.0, 1 / 3])
def test_a_step_of_training_reaches_the_network(low_scale):
    """Loss per image, finite, with a gradient; learning lowers it."""
    model = made(low_scale=low_scale, parametrisation="x0", lr=3e-3).train()
    optimiser, losses = model.optimizer(), []
    for step in range(30):
        torch.manual_seed(step % 3)
        loss, _ = model.training_loss(images(n=6), None)
        assert loss.shape == (6,)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        losses.append(float(loss.mean().detach()))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_steps_seen_by_a_callback_are_images():
    """Previews get image-shaped states whose last estimate is the sample."""
    model, seen = made(), []
    sample = model.sample(2, generator=seeded(), callback=seen.append)
    assert len(seen) == 3 and all(s.x.shape == s.x0.shape == sample.shape for s in seen)
    torch.testing.assert_close(seen[-1].x0.clamp(-1, 1), sample)


@pytest.mark.parametrize("representation", ["pixels", "haar"])
def test_filling_in_keeps_what_is_known(representation):
    """Known pixels come out bit for bit; a band is known where its whole block is; all known = the image."""
    model = (
        made() if representation == "haar" else build_model("diffusion", SMALL, ImageSpec((16, 16))).eval()
    )
    x, mask = images(n=2), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :7] = True
    y = fill_in(model, x, mask, generator=seeded(), resamples=2)
    model.spec.check(y)
    assert torch.equal(y[..., :7], x[..., :7]) and not torch.allclose(y[..., 7:], x[..., 7:])
    side = 16 if representation == "pixels" else 8
    known = model.representation.known(mask)
    assert known.shape[-2:] == (side, side) and int(known[0, 0, 0].sum()) == (7 if side == 16 else 3)
    everything = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    assert torch.equal(fill_in(model, x, everything, resamples=1), x)
    with pytest.raises(VerisimError, match="must be bool"):
        fill_in(model, x, mask.float())


def test_pixels_are_themselves():
    """The default touches nothing: same tensors, no state, no tensor more in a checkpoint."""
    model = build_model("diffusion", SMALL, ImageSpec((16, 16)))
    x = images()
    assert type(model.representation) is Representation
    assert model.representation.encode(x) is x and model.representation.decode(x) is x
    assert model.extra_state() == {} and all(k.startswith("net.") for k in model.state_dict())
    assert torch.equal(model.representation.clip(3 * x), (3 * x).clamp(-1, 1))


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({}, (15, 16), "15x16 cannot be halved.*14x16 or 16x16"),
        ({"low_scale": 0.0}, (16, 16), "low_scale = 0.*must be positive"),
        ({"band_std": (1.0, 2.0)}, (16, 16), "band_std has 2 values.*4 bands"),
        (
            {"representation": "pixels", "levels": 2},
            (16, 16),
            "levels has no meaning for representation 'pixels'",
        ),
        ({"first_stage": "runs/vq"}, (16, 16), "first_stage has no meaning.*Choose representation 'latent'"),
        ({"representation": "fourier"}, (16, 16), "Unknown representation 'fourier'"),
        (
            {"parametrisation": "epsilon", "learned_variance": True},
            (16, 16),
            "learned_variance is bounded by the grey values",
        ),
    ],
)
def test_bad_settings(settings, size, message):
    """One sentence: what, where, allowed, remedy."""
    with pytest.raises(VerisimError, match=message):
        build_model("diffusion", {**HAAR, **settings}, ImageSpec(size))


def test_images_that_do_not_vary_are_refused():
    """Constant images have no standard deviation to train with."""
    model = build_model("diffusion", HAAR, ImageSpec((16, 16)))
    with pytest.raises(VerisimError, match="does not vary"):
        model.prepare(torch.zeros(4, 1, 16, 16))


def test_wavelets_without_scale_are_patch_two():
    """A step costs what patch 2 costs: the networks have equal shapes, and the loss of the zero network is equal."""
    kind = {"parametrisation": "flow", "noise": "logit_normal"}
    bands = made(**kind, band_std=(0.5,) * 4)
    patched = build_model("diffusion", {**SMALL, **kind, "patch": 2}, ImageSpec((16, 16)))
    shapes = [{k: v.shape for k, v in m.net.state_dict().items()} for m in (bands, patched)]
    assert shapes[0] == shapes[1]
    x, eps = images(n=2), torch.randn(2, 1, 16, 16, generator=seeded(1))
    z = bands.representation.encode
    sigma = torch.tensor([0.3, 2.0])
    target = bands.parametrisation.target(z(x), z(eps), sigma)
    pixel = patched.parametrisation.target(x, eps, sigma)
    torch.testing.assert_close(target, z(pixel))
    torch.testing.assert_close(target.square().sum(), fold(pixel, 2).square().sum())
    assert math.isclose(bands.sigmas()[0], patched.sigmas()[0])
