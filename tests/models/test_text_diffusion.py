"""Diffusion conditioned on texts: an empty text is no text, a saved model reads the same, what cannot be is said."""

import pytest
import torch
from tests.fake_device import DEVICE, fake_device

from verisim.data.spec import Images, ImageSpec
from verisim.data.stream import BatchStream
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models import build_model
from verisim.tasks.generation import generate
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

SPEC = ImageSpec((16, 16))
SMALL = {
    "channels": (8, 16),
    "blocks": 1,
    "attention": (False, True),
    "head_channels": 8,
    "steps": 3,
    "text": "words",
    "text_words": 30,
    "text_length": 6,
    "text_width": 8,
    "text_depth": 1,
}
TEXTS = ("bright", "dark", "no effusion", "large effusion on the left")


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def made(**settings):
    """A text model whose zero-initialised layers were filled, so that texts change something."""
    torch.manual_seed(0)
    model = build_model("diffusion", {**SMALL, **settings}, SPEC)
    model.learn_texts(TEXTS)
    with torch.no_grad():
        for p in model.net.parameters():
            if not p.any():
                p.normal_(std=0.1, generator=seeded(1))
    return model.eval()


def test_texts_change_the_image_and_padding_does_not():
    """Different texts, different estimates; a longer frame of padding the same one."""
    model, long = made(), made(text_length=12)
    x, sigma = torch.randn(2, 1, 16, 16, generator=seeded()), torch.ones(2)
    a = model.denoise(x, sigma, model.read_texts(["bright", "no effusion"]))
    b = model.denoise(x, sigma, model.read_texts(["dark", "no effusion"]))
    assert not torch.allclose(a[0], b[0], atol=1e-4) and torch.allclose(a[1], b[1], atol=1e-6)
    state = {k: v for k, v in model.net.state_dict().items() if "places" not in k}
    long.net.load_state_dict(state, strict=False)
    with torch.no_grad():
        long.net.encoder.places[:6] = model.net.encoder.places
    c = long.denoise(x, sigma, long.read_texts(["bright", "no effusion"]))
    assert torch.allclose(a, c, atol=1e-6)


def test_an_empty_text_is_no_condition():
    """All padding and None give the same estimate: the null of guidance is the unconditional model."""
    model = made()
    x, sigma = torch.randn(2, 1, 16, 16, generator=seeded()), torch.ones(2)
    empty = model.read_texts(["", ""])
    assert torch.allclose(model.denoise(x, sigma, empty), model.denoise(x, sigma), atol=1e-6)


def test_guidance_scales():
    """Guidance 0 ignores the text, 1 is plain, 3 goes beyond: D = D_0 + 3 (D_text - D_0), clipped."""
    from verisim.models.diffusion.walk import guided

    model = made()
    x, sigma, text = torch.randn(2, 1, 16, 16, generator=seeded()), torch.ones(2), model.read_texts(TEXTS[:2])
    weak, strong = model.denoise(x, sigma), model.denoise(x, sigma, text)
    for scale in (0.0, 1.0, 3.0):
        model.configure_sampling(guidance=scale)
        want = weak + scale * (strong - weak)
        want = want.clamp(-1, 1) if scale == 3 else want
        assert torch.allclose(guided(model, text, model.denoise)(x, sigma), want, atol=1e-5)


def test_dropped_texts_are_empty_rows():
    """label_dropout 1 trains without texts, 0 with all of them, each row whole."""
    for share, kept in ((0.0, True), (1.0, False)):
        model = made(label_dropout=share)
        ids = model.read_texts(TEXTS)
        assert torch.equal(model._drop_labels(ids), ids if kept else torch.zeros_like(ids))


def test_batches_carry_texts():
    """The stream gives each image its own text; a subset too."""
    x = torch.linspace(-1, 1, 12).view(12, 1, 1, 1).expand(12, 1, 16, 16)
    images = Images(x.clone(), SPEC, texts=tuple(map(str, range(12))))
    for batch in BatchStream(images, 5, 3, lambda: 0):
        assert [float(x[int(t), 0, 0, 0]) for t in batch["text"]] == batch["image"][:, 0, 0, 0].tolist()
    assert images.subset(torch.tensor([3, 1])).texts == ("3", "1")
    with pytest.raises(VerisimError, match=r"2 texts for 12 images"):
        Images(x.clone(), SPEC, texts=("a", "b"))


def test_trained_saved_resumed(tmp_path):
    """A run learns its vocabulary once; stopped and resumed it gives the same weights; its file reads alone."""
    x = torch.rand(12, 1, 16, 16, generator=seeded()) * 2 - 1
    images = Images(x, SPEC, texts=TEXTS * 3)
    plan = ModelPlan("diffusion", SMALL)

    def settings(steps):
        return TrainSettings(max_steps=steps, batch_size=4, precision="float32", accelerator="cpu", seed=1)

    whole = train(RunFolder(tmp_path / "a"), plan, images, settings(4), quiet=True)
    train(RunFolder(tmp_path / "b"), plan, images, settings(2), quiet=True)
    train(RunFolder(tmp_path / "b"), plan, images, settings(4), resume=True, quiet=True)
    (one, card), (two, _) = load_model(tmp_path / "a"), load_model(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(one.net.parameters(), two.net.parameters()))
    assert one.reader.state() == whole.model.reader.state() and "effusion" in card.settings["text_state"]
    drawn = generate(one, card, 3, texts=("no effusion",), progress=False).images
    assert drawn.texts == ("no effusion",) * 3 and drawn.pixels.shape == (3, 1, 16, 16)
    assert torch.equal(
        drawn.pixels, generate(two, card, 3, texts=("no effusion",), progress=False).images.pixels
    )


def test_latents_and_texts_together(tmp_path):
    """Text-conditioned latent diffusion draws; without statistics it refuses."""
    torch.manual_seed(0)
    settings = {"channels": (8,), "head": "conv", "latent": 128}
    stage = build_model("conv_vae", settings, SPEC).eval()
    save_model(tmp_path / "w", stage, ModelCard("conv_vae", settings, SPEC))
    extra = {"representation": "latent", "first_stage": str(tmp_path / "w"), "allow_small_features": True}
    model = made(**extra)
    with pytest.raises(VerisimError, match=r"no statistics of its latent"):
        model.sample(1, model.read_texts(["dark"]), seeded())
    model.prepare(torch.rand(8, 1, 16, 16, generator=seeded()) * 2 - 1)
    assert model.sample(2, model.read_texts(["dark"]), seeded()).shape == (2, 1, 16, 16)


def test_what_cannot_be():
    """Text without attention, with classes, with a transformer; no texts; texts for others; a wrong condition."""
    cases = [
        ({"attention": (False, False)}, 0, "false at every level"),
        ({"backbone": "dit", "patch": 2}, 0, "backbone dit reads no text"),
        ({}, 3, "a class or a text, not both"),
    ]
    for settings, classes, message in cases:
        with pytest.raises(VerisimError, match=message):
            build_model("diffusion", {**SMALL, **settings}, SPEC, classes)
    model = made()
    with pytest.raises(VerisimError, match=r"images have none. Choose the manifest column"):
        model.learn_texts(None)
    with pytest.raises(VerisimError, match=r"takes texts, not a condition of shape"):
        model.sample(2, torch.tensor([0, 1]), seeded())
    plain = build_model("diffusion", {"channels": (8, 16), "blocks": 1, "attention": (False, False)}, SPEC)
    with pytest.raises(VerisimError, match=r"reads no texts. Leave out --data.text"):
        plain.learn_texts(TEXTS)
    with pytest.raises(VerisimError, match=r"trained without texts"):
        plain.read_texts(["dark"])


def test_guidance_of_latents_is_not_clipped_to_the_range_of_pixels(tmp_path):
    """Latents reach beyond 1: guidance 3 extrapolates them as they are; the clip at 1 would be another result."""
    from verisim.models.diffusion.walk import guided

    torch.manual_seed(0)
    settings = {"channels": (8,), "head": "conv", "latent": 128}
    save_model(
        tmp_path / "w", build_model("conv_vae", settings, SPEC).eval(), ModelCard("conv_vae", settings, SPEC)
    )
    model = made(representation="latent", first_stage=str(tmp_path / "w"), allow_small_features=True)
    model.prepare(torch.rand(8, 1, 16, 16, generator=seeded()) * 2 - 1)
    model.configure_sampling(guidance=3.0)
    z = 3 * torch.randn(2, *model.representation.spec.shape, generator=seeded())
    sigma, text = torch.full((2,), 0.3), model.read_texts(TEXTS[:2])
    weak, strong = model.denoise(z, sigma), model.denoise(z, sigma, text)
    want = weak + 3 * (strong - weak)
    assert float(want.detach().abs().max()) > 1.5
    assert torch.allclose(guided(model, text, model.denoise)(z, sigma), want, atol=1e-4)


def test_on_a_device():
    """Texts are read where the model is."""
    with fake_device():
        model = made().to(DEVICE)
        x = torch.zeros(2, 1, 16, 16).to(DEVICE)
        model.training_loss(x, model.condition_of(None, TEXTS[:2]))[0].mean().backward()
        assert model.sample(2, model.read_texts(["dark"]), seeded()).device == DEVICE
