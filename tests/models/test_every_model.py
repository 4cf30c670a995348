"""The contract of a model, checked for every entry of the registry."""

import pytest
import torch
from tests.fake_device import DEVICE, fake_device

from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models import MODELS, build_model
from verisim.models.diffusion.fill import fill_in
from verisim.roles import AnomalyDetector, Autoencoder, Coder, CodeSpace, Likelihood, Sampler
from verisim.seeding import generator

SMALL = {  # settings that make each model small and quick
    "dcgan": {"nf": 8, "latent": 8},
    "mlp_vae": {"hidden": 32, "layers": 2, "latent": 8},
    "conv_vae": {"width": 8, "max_width": 16, "latent": 8},
    "svae": {"width": 8, "max_width": 16, "maps": 2},
    "vpga": {"width": 8, "max_width": 16, "latent": 8},
    "intro_vae": {"width": 8, "max_width": 16, "latent": 8},
    "soft_intro_vae": {"width": 8, "max_width": 16, "latent": 8},
    "hierarchical_vae": {"width": 8, "max_width": 16, "maps": 2},
    "vqvae": {
        "codes": 16,
        "dim": 4,
        "channels": (8, 16),
        "prior": "transformer",
        "first_stage_steps": 1,
        "prior_layers": 1,
        "prior_channels": 16,
    },
    "pixelcnn": {"layers": 2, "channels": 8},
    "gated_pixelcnn": {"layers": 3, "channels": 8, "components": 2},
    "flow": {"levels": 2, "steps": 2, "hidden": 8},
    "position_regression": {"width": 2, "patch": 7, "patches": 4},
    "dense_autoencoder": {"width": 2, "latent": 4},
    "diffusion": {"channels": (8, 16), "blocks": 1, "attention": (False, False), "steps": 2},
    "age_guided": {
        "channels": (8, 8, 16),
        "blocks": 1,
        "attention": (False, False, True),
        "depth": 1,
        "groups": 4,
        "head_channels": 8,
        "regressor_attention": (False, False, True),
    },
    "development": {"latent": 4, "hidden": 8, "layers": 3},
    "patch_diffusion": {"channels": (8, 16), "blocks": 1, "steps": 2},
    "slice_diffusion": {"channels": (8, 16), "blocks": 1, "attention": (False, False), "budget": 4},
    "distilled": {"steps": 2, "phases": 1},
    "super_resolution": {
        "channels": (8, 16),
        "blocks": 1,
        "attention": (False, False),
        "steps": 2,
        "factor": 2,
    },
    "adversarial_steps": {
        "channels": (8, 16),
        "blocks": 1,
        "attention": (False, False),
        "steps": 2,
        "critic_channels": (8, 16),
        "latent": 8,
        "style": 8,
    },
}
SEGMENTERS = ("diffusion_segmentation", "supervised_segmentation")  # they make no images: test_segmenters.py
MODELS = {name: where for name, where in MODELS.items() if name not in SEGMENTERS}
CLASSES = {name: 0 if name == "pixelcnn" else 3 for name in MODELS}  # the literal PixelCNN has no classes
CLASSES["development"] = CLASSES["age_guided"] = 0  # ages instead
DETECTORS = ("position_regression", "dense_autoencoder")  # give anomaly maps and draw nothing
CLASSES |= dict.fromkeys(DETECTORS, 0)
SAMPLERS = sorted(set(MODELS) - set(DETECTORS))


def small(name, size=(16, 16), classes=0):
    """The small settings; a distilled model's with the description of a small teacher."""
    if name != "distilled":
        return SMALL[name]
    teacher = ModelCard("diffusion", SMALL["diffusion"], ImageSpec(size), classes).to_json()
    return {**SMALL[name], "teacher": teacher}


CLASSES["super_resolution"] = 0  # its condition is an image


def made(name, size=(16, 16), classes=0):
    torch.manual_seed(0)
    return build_model(name, small(name, size, classes), ImageSpec(size), classes)


def test_every_model_is_tested():
    """A model added to the registry without small settings here would escape these tests."""
    assert SMALL.keys() == MODELS.keys()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("size", [(16, 16), (32, 32)])
def test_samples_are_images(name, size):
    """Right shape, float32, finite, within [-1, 1]; unconditional."""
    model = made(name, size).eval()
    x = model.sample(3, generator=generator(0))
    model.spec.check(x)
    assert x.shape == (3, 1, *size) and x.dtype == torch.float32 and isinstance(model, Sampler)


@pytest.mark.parametrize("name", SAMPLERS)
def test_generator_decides_the_samples(name):
    """The same generator repeats the samples, another one does not, and global randomness is not touched."""
    model = made(name).eval()
    state = torch.get_rng_state()
    a, b, c = (model.sample(2, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", sorted(n for n, k in CLASSES.items() if k))
def test_classes_are_taken_and_checked(name):
    """Conditional models sample per class; a class they lack, or classes where there are none, are refused."""
    model = made(name, classes=3).eval()
    assert model.sample(3, torch.tensor([0, 1, 2]), generator(0)).shape == (3, 1, 16, 16)
    with pytest.raises(VerisimError, match=r"0\.\.\.2"):
        model.sample(1, torch.tensor([3]), generator(0))
    with pytest.raises(VerisimError, match="without classes"):
        made(name).eval().sample(1, torch.tensor([0]), generator(0))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("size", [(30, 30), (33, 17)])
def test_odd_sizes_work_or_say_what_would(name, size):
    """An odd size either works from loss to sample, or is refused with the nearest sizes that work."""
    try:
        model = made(name, size)
    except VerisimError as e:
        assert any(word in str(e) for word in ("16", "32")), e
        return
    assert model.sample(2, generator=generator(0)).shape == (2, 1, *size)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_trial_step_reaches_the_network(name):
    """The dry run's loss is finite and gives every part of the sampling network a gradient somewhere."""
    model = made(name, classes=CLASSES[name])
    label = torch.tensor([0, 1, 2, 0]) if CLASSES[name] else None
    loss = model.trial_loss(torch.rand(4, 1, 16, 16) * 2 - 1, label)
    loss.backward()
    grads = [p.grad for p in model.net.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and grads and any(float(g.abs().sum()) > 0 for g in grads)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("side", [64, 128])
def test_larger_images_train(name, side):
    """64 and 128 pixels: the loss is finite and its gradient arrives."""
    model = made(name, (side, side))
    loss = model.trial_loss(torch.rand(2, 1, side, side) * 2 - 1, None)
    loss.backward()
    grads = [p.grad for p in model.net.parameters() if p.grad is not None]
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in grads) and grads


@pytest.mark.parametrize("name", SAMPLERS)
def test_weights_round_trip(name, tmp_path):
    """A model rebuilt from its file alone draws the same images."""
    model = made(name).eval()
    model.use_channels_last()
    save_model(tmp_path / "w.safetensors", model, ModelCard(name, small(name), model.spec))
    again, card = load_model(tmp_path / "w.safetensors")
    assert card.model == name
    assert torch.equal(again.sample(2, generator=generator(5)), model.sample(2, generator=generator(5)))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_bits_per_dim_is_per_image_and_repeatable(name):
    """Where a likelihood is defined it is one finite number per image, the same for the same generator."""
    model = made(name).eval()
    if not isinstance(model, Likelihood):
        pytest.skip(f"{name} defines no likelihood")
    x = torch.rand(3, 1, 16, 16, generator=generator(3)) * 2 - 1
    a, b = (model.bits_per_dim(x, None, generator(4)) for _ in range(2))
    assert a.shape == (3,) and torch.isfinite(a).all() and torch.equal(a, b) and float(a.min()) > 0


def test_weights_of_another_model_are_refused(tmp_path):
    """A file whose tensors do not fit its card says which differs."""
    from verisim.errors import CheckpointError

    model = made("conv_vae")
    wrong = {**SMALL["conv_vae"], "width": 16}
    save_model(tmp_path / "w.safetensors", model, ModelCard("conv_vae", wrong, model.spec))
    with pytest.raises(CheckpointError, match="does not fit model 'conv_vae'"):
        load_model(tmp_path / "w.safetensors")


def test_every_representation_keeps_the_contract(tmp_path):
    """A diffusion model of wavelet bands or latents: images out, repeatable, rebuilt from its file alone."""
    stage = made("vqvae", (16, 16))
    save_model(tmp_path / "s", stage, ModelCard("vqvae", SMALL["vqvae"], stage.spec))
    extra = {"haar": {"low_scale": 0.5}, "latent": {"first_stage": str(tmp_path / "s")}}
    x = torch.rand(6, 1, 16, 16, generator=generator(3)) * 2 - 1
    for name, more in extra.items():
        settings = {**SMALL["diffusion"], "representation": name, "allow_small_features": True, **more}
        model = build_model("diffusion", settings, stage.spec, 3)
        model.prepare(x)
        loss = model.trial_loss(x, torch.tensor([0, 1, 2, 0, 1, 2]))
        loss.backward()
        model.eval().use_channels_last()
        a, b = (model.sample(2, torch.tensor([0, 2]), generator(s)) for s in (1, 2))
        model.spec.check(a)
        assert torch.isfinite(loss) and not torch.equal(a, b) and isinstance(model, Sampler)
        save_model(tmp_path / "w", model, ModelCard("diffusion", settings, model.spec, 3))
        again, _ = load_model(tmp_path / "w")
        assert torch.equal(again.sample(2, torch.tensor([0, 2]), generator(1)), a)
        with fake_device():
            there = again.to(DEVICE)
            there.training_loss(x.to(DEVICE), torch.zeros(6, dtype=torch.long).to(DEVICE))[
                0
            ].mean().backward()
            found = there.sample(2, torch.tensor([0, 2]), generator(1))
            torch.testing.assert_close(found.cpu(), a, atol=1e-4, rtol=0)
            known = torch.ones(1, 1, 16, 16, dtype=torch.bool)
            known[..., :8] = False
            filled = fill_in(there, x[:2], known, torch.tensor([0, 2]), generator=generator(1), resamples=1)
            assert torch.equal(filled.cpu()[..., 8:], x[:2, ..., 8:])


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("size", [(16, 16), (17, 22), (9, 12, 10)])
def test_detectors_map_and_do_not_sample(name, size, tmp_path):
    """One non-negative map per image, the same from the file alone; sampling is refused in a sentence."""
    model = made(name, size).eval()
    x = torch.rand(2, 1, *size, generator=generator(3)) * 2 - 1
    model.prepare(x)
    found = model.anomaly_map(x)
    assert isinstance(model, AnomalyDetector) and not model.can_sample
    assert found.shape == (2, 1, *size) and float(found.min()) >= 0 and float(found.max()) > 0
    save_model(tmp_path / "w.safetensors", model, ModelCard(name, SMALL[name], model.spec))
    again, _ = load_model(tmp_path / "w.safetensors")
    assert torch.allclose(again.anomaly_map(x), found, atol=1e-6)
    with pytest.raises(VerisimError, match="cannot sample"):
        model.sample(1)


def on_device(name):
    return made(name, classes=CLASSES[name]).to(DEVICE).eval()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_training_step_on_a_device(name):
    """Nothing is left on the CPU."""
    with fake_device():
        x = (torch.rand(4, 1, 16, 16) * 2 - 1).to(DEVICE)
        label = torch.tensor([0, 1, 2, 0]).to(DEVICE) if CLASSES[name] else None
        loss = on_device(name).train().trial_loss(x, label)
        loss.backward()
        assert loss.device == DEVICE and torch.isfinite(loss)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_on_a_device(name):
    """Noise and labels of the CPU give the images that they give there, but for rounding."""
    label = torch.tensor([0, 1]) if CLASSES[name] else None
    here = made(name, classes=CLASSES[name]).eval().sample(2, label, generator(1))
    with fake_device():
        found = on_device(name).sample(2, label, generator(1))
        assert found.device == DEVICE
        torch.testing.assert_close(found.cpu(), here, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_reading_on_a_device(name):
    """Images of the CPU are encoded, decoded, mapped and weighed."""
    x = torch.rand(3, 1, 16, 16, generator=generator(3)) * 2 - 1
    with fake_device():
        model = on_device(name)
        if isinstance(model, Autoencoder):
            model.decode(model.encode(x).cpu())
        if isinstance(model, Coder):
            model.rate_bits(x)
        if isinstance(model, CodeSpace):
            model.decode_codes(model.encode_codes(x).cpu())
        if isinstance(model, Likelihood):
            model.bits_per_dim(x, None, generator(4))
        if isinstance(model, AnomalyDetector):
            model.anomaly_map(x)
