"""Latent diffusion: exact statistics, a weights file complete in itself, and what is refused."""

import math
import shutil

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.hub.weights import ModelCard, load_model, read_card, save_model
from verisim.models import build_model
from verisim.models.diffusion.fill import fill_in
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

STAGES = {
    "vqvae": {"codes": 12, "dim": 3, "channels": (8, 16)},
    "conv_vae": {"channels": (8, 16), "head": "conv"},
}
SMALL = {
    "channels": (8, 16),
    "blocks": 1,
    "attention": (False, False),
    "steps": 3,
    "allow_small_features": True,
}
LATENT = {**SMALL, "representation": "latent"}


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def images(size=(16, 16), n=12, seed=0):
    """Smooth blobs, so that latents differ between images."""
    coarse = torch.randn(n, 1, *[4] * len(size), generator=seeded(seed))
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, size=size, mode=mode).clamp(-1, 1)


def stage(folder, kind="vqvae", size=(16, 16), seed=0, **settings):
    """The weights file of an autoencoder with random weights."""
    torch.manual_seed(seed)
    settings = {**STAGES[kind], **settings}
    if settings.get("head") == "conv":
        settings["latent"] = 2 * math.prod(-(-s // 4) for s in size)  # two maps
    model = build_model(kind, settings, ImageSpec(size)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "weights.safetensors", model, ModelCard(kind, settings, model.spec))
    return model, str(folder)


def made(first_stage, size=(16, 16), prepare=True, **settings):
    torch.manual_seed(1)
    model = build_model("diffusion", {**LATENT, "first_stage": first_stage, **settings}, ImageSpec(size))
    if prepare:
        model.prepare(images(size))
    return model.eval()


@pytest.mark.parametrize("kind", sorted(STAGES))
@pytest.mark.parametrize("size", [(16, 16), (16, 16, 16), (14, 18)])
def test_latents_are_standardised_and_decode_as_the_first_stage_does(kind, size, tmp_path):
    """Mean 0 and deviation 1 per channel on the training images; decode(encode x) is its reconstruction."""
    auto, path = stage(tmp_path / "s", kind, size)
    model, x = made(path, size), images(size)
    r = model.representation
    z = r.encode(x)
    assert tuple(z.shape[1:]) == r.spec.shape
    flat = z.transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(flat.mean(1), torch.zeros(len(flat)).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(1, unbiased=False), torch.ones(len(flat)).double(), atol=1e-4, rtol=0)
    seen = auto.decode_codes(auto.encode_codes(x)) if kind == "vqvae" else auto.decode(auto.encode(x))
    torch.testing.assert_close(r.decode(z), seen, atol=1e-5, rtol=0)
    raw = r._raw(x).transpose(0, 1).flatten(1).std(1)
    assert float((raw - 1).abs().max()) > 0.05  # control: they are not standard by themselves
    sample = model.sample(2, generator=seeded())
    model.spec.check(sample)
    assert model.sigma_data == 1.0 and sample.shape == (2, 1, *size)


def test_code_vectors_instead(tmp_path):
    """latent_codes: every position is a row of the codebook, and the latents differ from those before it."""
    auto, path = stage(tmp_path / "s")
    model, before = made(path, latent_codes=True), made(path)
    z = model.representation._raw(images())  # (B, D, *G)
    book = auto.net.autoencoder.quantiser.codebook
    apart = torch.cdist(z.movedim(1, -1).flatten(0, -2), book).min(1).values
    assert float(apart.max()) < 1e-5
    raw = before.representation._raw(images())
    assert float(torch.cdist(raw.movedim(1, -1).flatten(0, -2), book).min(1).values.max()) > 0.1


@pytest.mark.parametrize("kind", sorted(STAGES))
def test_the_weights_file_is_complete(kind, tmp_path):
    """With the first stage's folder gone the model loads, draws the same images, and can be saved again."""
    _, path = stage(tmp_path / "s", kind)
    model, settings = made(path), {**LATENT, "first_stage": path}
    model.use_channels_last()
    for name in "ab":
        save_model(tmp_path / name, model, ModelCard("diffusion", settings, model.spec))
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        again, card = load_model(tmp_path / name)
        assert path not in card.to_json()
        torch.testing.assert_close(again.sample(2, generator=seeded()), model.sample(2, generator=seeded()))
        model, settings = again, card.settings


def test_no_statistics_no_samples(tmp_path):
    """Without the latent mean and deviation nothing is sampled, trained or decoded: one clear sentence."""
    _, path = stage(tmp_path / "s")
    model = made(path, prepare=False)
    z = torch.zeros(1, *model.representation.spec.shape)
    uses = (
        lambda: model.sample(1),
        lambda: model.training_loss(images(), None),
        lambda: model.representation.decode(z),
        lambda: model.denoise(z, torch.ones(1)),
    )
    for use in uses:
        with pytest.raises(VerisimError, match=r"no statistics of its latent.*model\.prepare"):
            use()
    save_model(tmp_path / "w", model, ModelCard("diffusion", {**LATENT, "first_stage": path}, model.spec))
    with pytest.raises(VerisimError, match="no statistics of its latent"):
        load_model(tmp_path / "w")[0].sample(1)


def test_a_described_stage_without_weights_measures_nothing(tmp_path):
    """The description in a card rebuilds the structure only; a damaged one is refused."""
    _, path = stage(tmp_path / "s")
    text = read_card(tmp_path / "s" / "weights.safetensors").to_json()
    with pytest.raises(VerisimError, match="described but its weights are missing"):
        made(text)
    for bad in ("{", '{"model": "vqvae"}', "{}"):
        with pytest.raises(CheckpointError, match="description of the first stage is damaged"):
            made(bad)
    assert path not in text


def run(folder, first_stage, steps, resume=False):
    target = RunFolder(folder)
    if not resume:
        target.create({"recipe": "test"})
    settings = TrainSettings(
        max_steps=steps, batch_size=4, log_every=1, sample_minutes=0.0, ema=0.9, precision="float32"
    )
    plan = ModelPlan("diffusion", {**LATENT, "first_stage": first_stage})
    return train(
        target, plan, Images(images(), ImageSpec((16, 16))), settings, resume=resume, quiet=True
    ).model


def test_training_measures_freezes_stores_and_resumes(tmp_path):
    """3 + 3 steps are 6 steps, bit for bit; the first stage and its statistics are what they were."""
    auto, path = stage(tmp_path / "s")
    whole = run(tmp_path / "a", path, 6)
    run(tmp_path / "b", path, 3)
    shutil.rmtree(tmp_path / "s")  # a checkpoint is as complete as a weights file
    parts = run(tmp_path / "b", path, 6, resume=True)
    a, b = whole.state_dict(), parts.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    frozen = whole.representation.stage.net.state_dict()
    assert all(torch.equal(v, frozen[k]) for k, v in auto.net.autoencoder.state_dict().items())
    assert not any(m.training for m in whole.train().representation.modules())
    fresh = made(stage(tmp_path / "t")[1])
    assert torch.equal(whole.representation.std, fresh.representation.std)
    loaded, _ = load_model(tmp_path / "a")
    assert torch.equal(loaded.representation.mean, whole.representation.mean)
    trained = {id(p) for g in whole.optimizer().param_groups for p in g["params"]}
    assert not trained & {id(p) for p in whole.representation.parameters()}


def test_likelihood_and_clipping_are_refused(tmp_path):
    """Latents have no density of the image; epsilon's automatic clipping is left out, an explicit one refused."""
    _, path = stage(tmp_path / "s")
    model = made(path, parametrisation="epsilon")
    assert not model.options.clip
    with pytest.raises(VerisimError, match="latent representation is not orthonormal"):
        model.bits_per_dim(images())
    with pytest.raises(VerisimError, match=r"clip = true has no meaning.*latent"):
        model.configure_sampling(clip=True)
    assert not model.options.clip
    with pytest.raises(VerisimError, match=r"clip = true has no meaning.*latent"):
        made(path, clip="on")


def test_filling_in_through_a_latent(tmp_path):
    """Known pixels are kept bit for bit; a latent position is known where all of its pixels are."""
    model = made(stage(tmp_path / "s")[1])
    x, mask = images(n=2), torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :7] = True
    y = fill_in(model, x, mask, generator=seeded(), resamples=1)
    assert torch.equal(y[..., :7], x[..., :7]) and not torch.allclose(y[..., 7:], x[..., 7:])
    assert model.representation.known(mask)[0, 0, 0].tolist() == [True, False, False, False]


def test_a_guide_must_share_the_latent(tmp_path):
    """Autoguidance by a model of another first stage would add unlike things; one of the same works."""
    path = stage(tmp_path / "s")[1]
    model = made(path)
    for name, source in (("same", path), ("other", stage(tmp_path / "t", seed=3)[1])):
        guide = made(source)
        card = ModelCard("diffusion", {**LATENT, "first_stage": source}, model.spec)
        save_model(tmp_path / name, guide, card)
    model.configure_sampling(guide=str(tmp_path / "same"), autoguidance=2.0)
    assert torch.isfinite(model.sample(1, generator=seeded())).all()
    with pytest.raises(CheckpointError, match=r"denoises another representation.*same first stage"):
        model.configure_sampling(guide=str(tmp_path / "other"), autoguidance=2.0)


def test_first_stages_that_cannot_serve(tmp_path):
    """None, a missing one, another size, another kind, a flat latent: each says what would do."""
    with pytest.raises(VerisimError, match=r"needs a trained autoencoder: --model\.first_stage RUN"):
        made("")
    with pytest.raises(CheckpointError, match="does not exist"):
        made(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"images of \(1, 32, 32\).*Train it on the same data and size"):
        made(stage(tmp_path / "large", size=(32, 32))[1])
    with pytest.raises(CheckpointError, match=r"latent is a flat vector.*--model\.head conv"):
        made(stage(tmp_path / "flat", "conv_vae", head="dense", latent=8)[1])
    other = build_model("diffusion", SMALL, ImageSpec((16, 16)))
    save_model(tmp_path / "d", other, ModelCard("diffusion", SMALL, other.spec))
    with pytest.raises(
        CheckpointError, match="is a diffusion model; latent diffusion takes one of vqvae, conv_vae"
    ):
        made(str(tmp_path / "d"))
