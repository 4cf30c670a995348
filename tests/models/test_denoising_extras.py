"""Learned variance, other guides, other averages and the transformer, wired into the diffusion model."""

import contextlib
import math

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.diffusion.chain import variances
from verisim.diffusion.samplers import ddpm
from verisim.errors import CheckpointError, VerisimError
from verisim.hub.weights import ModelCard, load_model, save_model
from verisim.models import build_model
from verisim.nets import DiT
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

SPEC = ImageSpec((8, 8))
TINY = {"channels": (8, 8), "blocks": 1, "attention": (False, False)}
LEARNED = {"parametrisation": "epsilon", "learned_variance": True, "steps": 3}
DIT = {"backbone": "dit", "patch": 2, "width": 16, "depth": 2, "head_channels": 8}


def tiny(spec=SPEC, num_classes=0, awake=True, **settings):
    torch.manual_seed(0)
    model = build_model("diffusion", TINY | settings, spec, num_classes)
    if awake:
        for p in model.net.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- learned variance --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, ImageSpec((8, 8, 8)), ImageSpec((9, 10))])
@pytest.mark.parametrize("parametrisation", ["epsilon", "v", "x0", "edm", "flow"])
def test_learned_variance_trains_and_samples(spec, parametrisation):
    """Twice the channels out of the network, one image out of the model; finite loss with its part; 2D and 3D."""
    model = tiny(spec, parametrisation=parametrisation, noise="vp_cosine", learned_variance=True, steps=2)
    model.configure_sampling(sampler="ddpm", schedule="vp_cosine", steps=2)
    x = torch.rand(3, *spec.shape) * 2 - 1
    loss, parts = model.training_loss(x, None)
    assert loss.shape == parts["vlb_bits"].shape == (3,) and torch.isfinite(loss).all()
    y = model.sample(2, generator=seeded())
    assert y.shape == (2, *spec.shape) and torch.isfinite(y).all()
    assert model.denoise(x, torch.full((3,), 0.5)).shape == x.shape


def test_the_variance_head_is_what_samples():
    """auto = the network's; lower is `ddpm` itself, bit for bit; lower and upper frame a fresh network's middle."""
    model = tiny(**LEARNED)
    results = {}
    for variance in ("auto", "learned", "lower", "upper"):
        model.configure_sampling(variance=variance)
        results[variance] = model.sample(4, generator=seeded())
    assert torch.equal(results["auto"], results["learned"])
    assert not torch.equal(results["learned"], results["lower"])
    assert not torch.equal(results["upper"], results["lower"])
    g, sigmas = seeded(), model.sigmas()
    x = float(sigmas[0]) * torch.randn(4, 1, 8, 8, generator=g)
    plain = ddpm(lambda y, s: model.denoise(y, s).clamp(-1, 1), x, sigmas, generator=g)
    torch.testing.assert_close(results["lower"], plain.clamp(-1, 1))
    fresh = tiny(awake=False, **LEARNED)
    _, v = fresh.denoise_with_variance(torch.zeros(1, 1, 8, 8), torch.ones(1))
    assert bool((v == 0.5).all())


def test_one_evaluation_per_step_also_with_guidance():
    """x0 and v come from one evaluation; guidance leaves v as the condition has it."""
    model = tiny(num_classes=2, **LEARNED)
    calls = []
    model.net.register_forward_pre_hook(lambda net, args: calls.append(len(args[0])))
    model.configure_sampling(steps=5, guidance=3.0)
    model.sample(2, torch.tensor([0, 1]), seeded())
    assert calls == [4] * 5
    from verisim.models.diffusion.walk import reverse

    x, s, label = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    torch.testing.assert_close(reverse(model, label)(x, s)[1], model.denoise_with_variance(x, s, label)[1])


def test_bound_of_the_chain_in_bits():
    """Parts per image that add up, from the schedule in use; a trained variance head lowers it."""
    model = tiny(**LEARNED)
    model.configure_sampling(steps=6)
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    bound = model.chain_bound(x, generator=seeded())
    assert bound.steps.shape == (2, 5) and torch.isfinite(bound.total).all()
    torch.testing.assert_close(bound.total, bound.prior + bound.steps.sum(1) + bound.last)
    low, high = variances(model.sigmas())
    assert bool((low[:-1] < high[:-1]).all())


def test_learned_variance_learns():
    """250 steps on images of std 0.25: the network's variance beats both fixed ones on new images, at 20 steps."""
    torch.manual_seed(0)
    settings = {"channels": (16,), "blocks": 1, "attention": (False,), "lr": 3e-3}
    model = build_model(
        "diffusion", {**settings, "parametrisation": "v", "learned_variance": True}, ImageSpec((4, 4))
    )
    optimiser = model.optimizer()

    def images(n):
        return (0.25 * torch.randn(n, 1, 4, 4)).clamp(-1, 1)

    for step in range(250):
        torch.manual_seed(step)
        optimiser.zero_grad()
        model.training_loss(images(64), None)[0].mean().backward()
        optimiser.step()
    held_out, bits = images(64), {}
    for variance in ("learned", "lower", "upper"):
        model.configure_sampling(sampler="ddpm", schedule="vp_linear", steps=20, variance=variance)
        bits[variance] = float(model.chain_bound(held_out, generator=seeded()).total.mean())
    assert bits["learned"] < min(bits["lower"], bits["upper"]) - 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learned_variance": True}, "learned_variance needs a chain of training steps; noise 'lognormal'"),
        ({**LEARNED, **DIT, "mask_share": 0.5}, "cannot be combined"),
        ({"mask_share": 0.5}, "needs backbone dit"),
        ({**DIT, "mask_share": 1.0}, "mask_share = 1"),
        ({**DIT, "dropout": 0.1}, "dropout is a setting of the U-Net"),
        ({"backbone": "vit"}, "Unknown backbone 'vit'"),
    ],
)
def test_bad_settings(settings, message):
    """What cannot work is refused when the model is built."""
    with pytest.raises(VerisimError, match=message):
        tiny(**settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddpm", "variance": "learned"}, "trained without it"),
        ({"variance": "upper"}, "variance = upper has no meaning for sampler 'heun'. Choose sampler 'ddpm'"),
        ({"sampler": "ddpm", "variance": "uper"}, "Did you mean 'upper'"),
        ({"fresh_noise": True}, "fresh_noise = True has no meaning for sampler 'heun'"),
        ({"autoguidance": 2.0}, "needs a guide"),
        ({"guidance": math.nan}, "guidance = nan: it must be finite"),
        ({"ema_length": 0.5}, "relative length 0.5 does not exist"),
        ({"ema_length": 0.1}, "needs the run folder"),
        ({"guide": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_bad_sampling_options(options, message):
    """One sentence, and the options stay as they were."""
    model = tiny()
    before = model.options
    with pytest.raises(VerisimError, match=message):
        model.configure_sampling(**options)
    assert model.options == before and model.guide is None


# --- other weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 12 steps with checkpoints and snapshots."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.create({})
    x = torch.rand(64, 1, 8, 8, generator=seeded()) * 2 - 1
    settings = TrainSettings(
        batch_size=8,
        max_steps=12,
        checkpoint_steps=6,
        snapshot_steps=3,
        precision="float32",
        sample_minutes=0.0,
    )
    plan = ModelPlan(
        "diffusion", {**TINY, "channels": [8, 8], "attention": [False, False], "lr": 1e-2, "steps": 3}
    )
    train(folder, plan, Images(x, SPEC), settings, quiet=True)
    return folder


def test_autoguidance_by_a_checkpoint_of_the_run(run):
    """A name inside of the run folder is enough; scale 1 is the model alone, 2 the formula, the guide's weights its own."""
    model, _ = load_model(run.path)
    plain = model.sample(2, generator=seeded())
    model.configure_sampling(guide="checkpoints/step-000000006.safetensors", autoguidance=1.0)
    assert torch.equal(model.sample(2, generator=seeded()), plain)
    model.configure_sampling(autoguidance=2.0)
    assert not torch.equal(model.sample(2, generator=seeded()), plain)
    x, s = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
    weak = model.guide(x, s, None)
    strong = model.denoise(x, s)
    assert not torch.equal(weak, strong)
    from verisim.models.diffusion.walk import guided

    expected = (weak + 2 * (strong - weak)).clamp(-1, 1)
    torch.testing.assert_close(guided(model, None, model.denoise)(x, s), expected)
    model.configure_sampling(guide="", autoguidance=1.0)
    assert torch.equal(model.sample(2, generator=seeded()), plain)
    assert "guide" not in " ".join(model.state_dict())


def test_autoguidance_by_a_snapshot_and_by_another_model(run, tmp_path):
    """A snapshot of the averages, or a smaller network's weights file, guide as well."""
    model, _ = load_model(run.path)
    model.configure_sampling(guide=str(run.averages / "step-000000003.safetensors"), autoguidance=2.0)
    assert torch.isfinite(model.sample(1, generator=seeded())).all()
    small = {"channels": [8], "blocks": 1, "attention": [False]}
    other = build_model("diffusion", {**small, "channels": (8,), "attention": (False,)}, SPEC)
    save_model(tmp_path / "w.safetensors", other, ModelCard("diffusion", small, SPEC))
    model.configure_sampling(guide=str(tmp_path / "w.safetensors"))
    x, s = torch.randn(1, 1, 8, 8), torch.ones(1)
    torch.testing.assert_close(model.guide(x, s, None), other.denoise(x, s))


def test_guides_that_do_not_fit(run, tmp_path):
    """Images of another size, a model that is no diffusion model, a checkpoint of another network."""
    model, _ = load_model(run.path)
    sized = build_model("diffusion", TINY, ImageSpec((16, 16)))
    card = ModelCard(
        "diffusion", {**TINY, "channels": [8, 8], "attention": [False, False]}, ImageSpec((16, 16))
    )
    save_model(tmp_path / "a.safetensors", sized, card)
    with pytest.raises(CheckpointError, match=r"\(1, 16, 16\) with 0 classes; this model \(1, 8, 8\)"):
        model.configure_sampling(guide=str(tmp_path / "a.safetensors"))
    vae = build_model("mlp_vae", {"hidden": 8, "layers": 1, "latent": 2}, SPEC)
    save_model(
        tmp_path / "b.safetensors", vae, ModelCard("mlp_vae", {"hidden": 8, "layers": 1, "latent": 2}, SPEC)
    )
    with pytest.raises(CheckpointError, match="a diffusion model is needed"):
        model.configure_sampling(guide=str(tmp_path / "b.safetensors"))
    wide = tiny(channels=(16, 8))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        wide.configure_sampling(guide=str(run.checkpoints()[0]))


def test_any_length_of_average_after_training(run):
    """The tracked lengths come back exactly, others differ, 0 restores the run's own; exported as chosen."""
    model, _ = load_model(run.path)
    own = model.sample(2, generator=seeded())
    model.configure_sampling(ema_length=0.05)
    from verisim.training.checkpoint import load_state

    tracked = load_state(run.averages / "step-000000012.safetensors")["tracks"][0]
    for name, value in model.sampling_net.state_dict().items():
        torch.testing.assert_close(value, tracked[name], atol=1e-6, rtol=1e-5)
    short = model.sample(2, generator=seeded())
    model.configure_sampling(ema_length=0.2)
    assert not torch.equal(model.sample(2, generator=seeded()), short)
    model.configure_sampling(ema_length=0.0)
    assert torch.equal(model.sample(2, generator=seeded()), own)


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path):
    """The remedy is the training setting."""
    model = tiny()
    save_model(
        tmp_path / "weights.safetensors",
        model,
        ModelCard("diffusion", {**TINY, "channels": [8, 8], "attention": [False, False]}, SPEC),
    )
    loaded, _ = load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"snapshot_steps"):
        loaded.configure_sampling(ema_length=0.1)


# --- the transformer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, ImageSpec((4, 8, 8)), ImageSpec((9, 7))])
@pytest.mark.parametrize("extra", [{}, {"positions": "rope"}, {"mask_share": 0.5}], ids=str)
def test_the_transformer_trains_and_samples(spec, extra):
    """2D, 3D and odd sizes; masked training counts the kept tokens alone."""
    model = tiny(spec, num_classes=2, **DIT, **extra, steps=2)
    assert isinstance(model.net, DiT)
    x, label = torch.rand(3, *spec.shape) * 2 - 1, torch.tensor([0, 1, 0])
    loss, _ = model.training_loss(x, label)
    loss.mean().backward()
    assert loss.shape == (3,) and torch.isfinite(loss).all()
    assert [k for k, p in model.net.named_parameters() if p.grad is None] == []
    y = model.sample(2, torch.tensor([0, 1]), seeded())
    assert y.shape == (2, *spec.shape) and torch.isfinite(y).all()


def test_masked_loss_starts_at_one_as_the_plain_one_does():
    """A fresh network answers 0: the loss over kept tokens estimates the same E target^2 = 1."""
    x = 0.5 * torch.randn(256, 1, 8, 8, generator=seeded())
    for share in (0.0, 0.5):
        model = tiny(awake=False, **DIT, mask_share=share)
        torch.manual_seed(0)
        assert float(model.training_loss(x, None)[0].detach().mean()) == pytest.approx(1.0, abs=0.05)


def test_the_transformer_learns_where_bright_things_are():
    """The test of the U-Net, with half of the tokens left out in training: bright on the right after, not before."""
    torch.manual_seed(0)
    model = build_model("diffusion", {**DIT, "width": 32, "lr": 3e-3, "mask_share": 0.5}, SPEC)

    def side(x):
        return float((x[..., 4:] - x[..., :4]).mean())

    before = side(model.sample(32, generator=seeded()))
    optimiser = model.optimizer()
    for step in range(200):
        torch.manual_seed(step)
        x = 0.1 * torch.randn(16, 1, 8, 8)
        x[..., 4:] += 0.6
        x[..., :4] -= 0.6
        optimiser.zero_grad()
        model.training_loss(x.clamp(-1, 1), None)[0].mean().backward()
        optimiser.step()
    assert abs(before) < 0.3
    assert side(model.sample(32, generator=seeded())) == pytest.approx(1.2, abs=0.25)


def test_settings_of_the_card_rebuild_the_transformer(tmp_path):
    """Saved and loaded it draws the same images, learned variance included."""
    settings = {**DIT, **LEARNED}
    model = tiny(**settings).eval()
    card = ModelCard(
        "diffusion", {**settings, "channels": [8, 8], "blocks": 1, "attention": [False, False]}, SPEC
    )
    save_model(tmp_path / "w.safetensors", model, card)
    again, _ = load_model(tmp_path / "w.safetensors")
    with contextlib.suppress(AttributeError):
        model.use_channels_last()
    torch.testing.assert_close(again.sample(2, generator=seeded(5)), model.sample(2, generator=seeded(5)))
