"""Perceptual and adversarial terms of autoencoders: values, who learns from what, warm-up, resuming, controls."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import load_model
from verisim.metrics.features import domain_features, save_features
from verisim.models import build_model
from verisim.models.adversarial.losses import HINGE
from verisim.models.autoencoders.gaussian import frozen
from verisim.models.autoencoders.realism import Realism, RealismTerms, adaptive_weight, per_image
from verisim.training.checkpoint import load_state
from verisim.training.memory import count_forward, count_step, weightless
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

OWN = {
    "conv_vae": {"channels": (4, 8), "head": "conv", "latent": 32, "kl_warmup": 2},
    "vqvae": {"codes": 8, "dim": 4, "channels": (4, 8)},
}
BOTH = {
    "perceptual_weight": 0.5,
    "adversarial": 0.5,
    "discriminator_layers": 2,
    "discriminator_width": 4,
    "lr": 1e-3,
}
NAMES = sorted(OWN)
SIZE = (16, 16)


def images(n: int = 8, size: tuple[int, ...] = SIZE) -> Tensor:
    return torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def made(name: str, size: tuple[int, ...] = SIZE, **settings) -> Realism:
    """A model that steps without a Lightning trainer; `seen` collects what it logs."""
    torch.manual_seed(0)
    own = OWN[name] if len(size) == 2 else {**OWN[name], "channels": (4, 4)}
    if name == "conv_vae" and len(size) == 3:
        own = {**own, "latent": math.prod(n // 4 for n in size)}
    model = build_model(name, {**own, **settings}, ImageSpec(size))
    model.manual_backward = lambda loss: loss.backward()
    optimizers = model.optimizer()
    model.optimizers = lambda: optimizers
    model.seen = []
    model.log_parts = lambda parts: model.seen.append(
        {k: float(v.detach().float().mean()) for k, v in parts.items()}
    )
    return model


def copied(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# --- values ---------------------------------------------------------------------------------------


def test_hinge_values():
    """max(0, 1 - D(x)), max(0, 1 + D(x^)) and -D(x^), by hand, on maps of scores."""
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert HINGE.discriminator(real, fake).tolist() == [0.0, 0.5 + 1.0, 2.0 + 2.0]
    assert HINGE.generator(fake).tolist() == [2.0, 0.0, -1.0]
    assert per_image(torch.arange(8.0).view(2, 1, 2, 2)).tolist() == [1.5, 5.5]


def test_discriminator_loss_by_hand():
    """Half the hinge sum per patch; a discriminator that is right by a margin of 1 has nothing to learn."""
    model = made("conv_vae", **BOTH)
    x, y = images(), -images()
    loss, parts = model.discriminator_loss(x, y)
    a, b = model.discriminator(x), model.discriminator(y)
    want = 0.5 * ((1 - a).clamp(min=0) + (1 + b).clamp(min=0)).flatten(1).mean(1)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(parts["d_real"], a.flatten(1).mean(1))
    model.discriminator.forward = lambda v: 2.0 * v.mean((1, 2, 3), keepdim=True).sign()
    bright, dark = torch.full((2, 1, *SIZE), 0.5), torch.full((2, 1, *SIZE), -0.5)
    assert model.discriminator_loss(bright, dark)[0].tolist() == [0.0, 0.0]
    assert model.discriminator_loss(dark, bright)[0].tolist() == [3.0, 3.0]


def test_adaptive_weight_on_two_parameters():
    """error = 3 a + 4 b, score = 6 a + 8 b: gradients of length 5 and 10, so 5 / (10 + 1e-4)."""
    w = nn.Parameter(torch.tensor([0.3, -2.0]))
    error, score = (w * torch.tensor([3.0, 4.0])).sum(), (w * torch.tensor([6.0, 8.0])).sum()
    found = adaptive_weight(error, score, w)
    assert float(found) == pytest.approx(5 / (10 + 1e-4), rel=1e-6) and not found.requires_grad
    assert float(adaptive_weight(error, 0 * score, w)) == 1e4  # 5 / 1e-4 is clamped
    assert float(adaptive_weight(0 * error, score, w)) == 0
    assert math.isnan(adaptive_weight(error * torch.nan, score, w))  # the step is then skipped
    (error + score).backward()
    assert w.grad.tolist() == [9.0, 12.0]  # both graphs are still there


def test_adaptive_weight_without_gradient_is_one():
    """A forward pass alone, as when memory is counted or a loss is looked at."""
    w = nn.Parameter(torch.ones(2))
    with torch.no_grad():
        assert float(adaptive_weight(w.sum(), w.sum(), w)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_loss_is_the_sum_of_its_terms(name):
    """L = own + p d + a lambda (-D), with gradients at the decoder's last layer; all taken from scratch."""
    model = made(name, **BOTH)
    x = images()
    torch.manual_seed(5)
    before = copied(model)
    loss, parts = model.training_loss(x, None)
    model.load_state_dict(before)  # forgets what the pass moved in running averages
    torch.manual_seed(5)
    found = model.reconstruction(x, None)
    d = model.distance(found.image, x)
    score = -model.discriminator(found.image).flatten(1).mean(1)
    at = model.last_weight
    up = torch.autograd.grad((found.error + 0.5 * d).mean(), at, retain_graph=True)[0].norm()
    down = torch.autograd.grad(score.mean(), at, retain_graph=True)[0].norm()
    weight = (up / (down + 1e-4)).detach()
    torch.testing.assert_close(loss, found.loss + 0.5 * d + 0.5 * weight * score)
    torch.testing.assert_close(parts["adaptive_weight"], weight)
    torch.testing.assert_close(parts["perceptual"], 0.5 * d)
    assert 0 < float(weight) < 1e4


@pytest.mark.parametrize("name", NAMES)
def test_last_weight_is_what_makes_the_pixels(name):
    """Scaling it scales the raw output but for the bias; nothing of the network comes behind it."""
    model = made(name).eval()
    decoder = model.net.decoder if name == "conv_vae" else model.net.autoencoder.decoder
    z = torch.randn(2, *((32,) if name == "conv_vae" else (4, 4, 4)))
    bias = decoder.layers[-1].bias.view(1, -1, 1, 1)
    with torch.no_grad():
        before = decoder(z) - bias
        model.last_weight.mul_(2.0)
        torch.testing.assert_close(decoder(z) - bias, 2 * before)


@pytest.mark.parametrize("name", NAMES)
def test_without_terms_nothing_changes(name):
    """Off: the loss is the model's own, bit for bit; no network, no parameter and no draw is added."""
    model = made(name)
    x = images()
    before = copied(model)
    torch.manual_seed(5)
    loss, parts = model.training_loss(x, None)
    model.load_state_dict(before)
    torch.manual_seed(5)
    if name == "conv_vae":
        want, own = model.negative_elbo(x, model.groups(8, None), 0.5, 0.0)
        want = want / model.spec.dims
    else:
        net = model.net.autoencoder
        q = net.quantiser(net.encoder(x))
        want = net.observation.nll(net.decoder(q.embedding), x) / model.spec.dims + 0.25 * q.commitment
        own = {"mse": 0, "commitment": 0, "perplexity": 0, "used": 0}
    assert torch.equal(loss, want) and parts.keys() == own.keys()
    assert all(k.startswith(("net.", "density.")) for k in model.state_dict())
    assert model.automatic_optimization and isinstance(model.optimizer(), torch.optim.Optimizer)
    judged = made(name, **BOTH)
    assert same(copied(judged.net), copied(made(name).net))  # its networks are drawn last


# --- who learns from what -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_step_moves_its_own_player_only(name):
    """The autoencoder's loss gives the discriminator no gradient, and the other way round."""
    model = made(name, **BOTH)
    x = images()
    model.training_loss(x, None)[0].mean().backward()
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.requires_grad for p in model.discriminator.parameters())
    assert float(model.last_weight.grad.abs().sum()) > 0
    model.zero_grad()
    image = model.reconstruction(x, None).image
    net, own = copied(model.net), copied(model.discriminator)
    model.discriminator_step(x, image.detach(), model.optimizers()[1])
    assert all(p.grad is None for p in model.net.parameters())
    assert same(copied(model.net), net) and not same(copied(model.discriminator), own)


def test_unfrozen_the_autoencoder_would_teach_the_discriminator(monkeypatch):
    """Negative control of the test above."""
    from contextlib import nullcontext

    import verisim.models.autoencoders.realism as realism

    assert realism.frozen is frozen
    monkeypatch.setattr(realism, "frozen", lambda *_: nullcontext())
    model = made("conv_vae", **BOTH)
    model.training_loss(images(), None)[0].mean().backward()
    assert any(p.grad is not None for p in model.discriminator.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_autoencoder_hears_the_discriminator(name):
    """The adversarial term's share of the gradient at the last layer is a times that of the error, as lambda says."""
    model = made(name, **{**BOTH, "adversarial": 0.25})
    x = images()
    found = model.reconstruction(x, None)
    with_it, parts = model.with_terms(x, found, True)
    without, _ = model.with_terms(x, found, False)
    at = model.last_weight
    share = torch.autograd.grad((with_it - without).mean(), at, retain_graph=True)[0].norm()
    error = (found.error + parts["perceptual"]).mean()
    whole = torch.autograd.grad(error, at)[0].norm()
    assert float(share / whole) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_the_discriminator_waits_for_its_start(name):
    """Two batches without it: its weights and its Adam are untouched, the autoencoder learns; then both move."""
    model = made(name, **BOTH, discriminator_start=2)
    x, own = images(), copied(model.discriminator)
    for step in range(4):
        model.step = step
        net = copied(model.net)
        model.training_step({"image": x}, 0)
        assert not same(copied(model.net), net)
        begun = step >= 2
        assert same(copied(model.discriminator), own) != begun
        assert bool(model.optimizers()[1].state) == begun
        assert ({"adversarial", "adaptive_weight", "d_loss"} <= model.seen[-1].keys()) == begun
        assert "perceptual" in model.seen[-1]


def test_a_discriminator_alone_tells_real_from_blurred():
    """Its own steps work: after forty it scores images above smoothed ones."""
    model = made("conv_vae", **{**BOTH, "discriminator_lr": 1e-2})
    x = images(16)
    smooth = nn.functional.avg_pool2d(x, 3, 1, 1)
    for _ in range(40):
        model.discriminator_step(x, smooth, model.optimizers()[1])
    with torch.no_grad():
        parts = model.discriminator_loss(images(32)[16:], smooth)[1]
    assert float(parts["d_real"].min()) > float(parts["d_made"].max())


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_not_finite_changes_nobody(name):
    """NaN in the batch: both players keep their weights, the step is counted as skipped."""
    model = made(name, **BOTH)
    model.training_step({"image": images()}, 0)
    net = {k: v for k, v in copied(model.net).items() if k in dict(model.net.named_parameters())}
    own, x = copied(model.discriminator), images()
    x[0, 0, 0, 0] = torch.nan
    model.training_step({"image": x}, 0)
    after = copied(model.net)
    assert all(torch.equal(v, after[k]) for k, v in net.items())
    assert same(copied(model.discriminator), own) and model.bad_loss is not None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"adversarial": 1.0, "discriminator_layers": 3}, "3 layers needs sides of 24.*1 to 2 fit"),
        ({"adversarial": -1.0}, "adversarial is -1; it must be 0 or more"),
        ({"perceptual_weight": math.nan}, "perceptual_weight is nan; it must be 0 or more"),
        ({"adversarial": 1.0, "discriminator_width": 0}, "discriminator_width is 0"),
    ],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(VerisimError, match=text):
        made("vqvae", **settings)
    made("vqvae", discriminator_layers=3)  # without a discriminator its layers do not matter


# --- runs -----------------------------------------------------------------------------------------


def trained(path, name, settings, steps=8, resume=False, **training):
    """A run of the real training loop."""
    run = RunFolder(path)
    if not resume:
        run.create({"recipe": "test"})
    base = {"batch_size": 4, "log_every": 1, "sample_minutes": 0.0, "ema": 0.9, "precision": "float32"}
    return train(
        run,
        ModelPlan(name, {**OWN[name], **settings}),
        Images(images(12), ImageSpec(SIZE)),
        TrainSettings(max_steps=steps, **{**base, **training}),
        resume=resume,
        quiet=True,
    ).model


PRIOR = {"prior": "transformer", "first_stage_steps": 6, "prior_layers": 1, "prior_channels": 16}


@pytest.mark.parametrize(
    ("name", "at", "more"), [("conv_vae", 3, {}), ("conv_vae", 5, {}), ("vqvae", 7, PRIOR)]
)
def test_resume_is_bit_identical(tmp_path, monkeypatch, name, at, more):
    """Killed before and after the discriminator's start, and in the prior's stage: both players end the same."""
    settings = {**BOTH, **more, "discriminator_start": 4}
    whole = trained(tmp_path / "a", name, settings, checkpoint_steps=2)
    step = Realism.training_step

    def dies(self, batch, index):
        if self.step == at:
            raise RuntimeError("killed")
        return step(self, batch, index)

    monkeypatch.setattr(Realism, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path / "b", name, settings, checkpoint_steps=2)
    monkeypatch.setattr(Realism, "training_step", step)
    again = trained(tmp_path / "b", name, settings, resume=True, checkpoint_steps=2)
    assert same(whole.state_dict(), again.state_dict())
    assert any(k.startswith("discriminator.") for k in whole.state_dict())
    optimizers = [load_state(RunFolder(tmp_path / r).checkpoints()[0])["optimizer_states"] for r in "ab"]
    for one, other in zip(*optimizers):
        assert all(same(v, other["state"][k]) for k, v in one["state"].items())
    assert len(optimizers[0]) == 2 and optimizers[0][1]["state"]


def test_a_finished_run_needs_neither_discriminator_nor_file(tmp_path):
    """The weights file holds the sampling network alone; the feature network's file may be gone."""
    net = domain_features(Images(images(32), ImageSpec(SIZE)), steps=2)
    save_features(net, tmp_path / "net.safetensors")
    settings = {**BOTH, "perceptual": str(tmp_path / "net.safetensors")}
    model = trained(tmp_path / "run", "conv_vae", settings, steps=2).eval()
    (tmp_path / "net.safetensors").unlink()
    again, card = load_model(tmp_path / "run")
    assert card.settings["perceptual"] == settings["perceptual"]
    names = load_state(tmp_path / "run" / "weights.safetensors")["net"].keys()
    assert not any("discriminator" in k or "distance" in k for k in names)
    x = images()
    torch.testing.assert_close(again.decode(again.encode(x)), model.decode(model.encode(x)))
    with pytest.raises(VerisimError, match="neither 'random' nor a file"):
        trained(tmp_path / "two", "conv_vae", settings, steps=2)


def test_the_best_weights_are_not_asked_of_two_players(tmp_path):
    """With a discriminator no loss falls as images get better; with the perceptual term alone one does."""
    with pytest.raises(VerisimError, match="play against each"):
        trained(tmp_path / "a", "conv_vae", BOTH, select="best", select_share=0.3)
    calm = {**BOTH, "adversarial": 0.0}
    model = trained(
        tmp_path / "b", "conv_vae", calm, steps=4, select="best", select_share=0.3, select_steps=2
    )
    assert model.best is not None and math.isfinite(model.best.loss)


def test_a_step_can_be_counted_without_contents():
    """`verisim profile`: bytes of a copy without contents are those of a real step, both players included."""
    model = made("conv_vae", **BOTH, discriminator_start=1000)
    x = images(2)
    model.prepare(x)
    real = count_step(lambda: model.trial_loss(x, None), model.parameters())
    forward = count_forward(lambda: model.trial_loss(x, None), model.parameters())
    with weightless(model, x) as (hollow, (shapes,)):
        assert count_forward(lambda: hollow.trial_loss(shapes, None), hollow.parameters()) == forward
        assert count_step(lambda: hollow.trial_loss(shapes, None), hollow.parameters()) == real
    assert any(p.grad is not None for p in model.discriminator.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(12, 12, 13), (14, 30)])
def test_volumes_and_odd_sizes(name, size):
    """The same terms, no slices: a step of both players on a volume, and on sides that do not divide."""
    layers = {"discriminator_layers": 2 if min(size) > 11 else 1}
    if name == "conv_vae" and any(n % 4 for n in size):
        layers["latent"] = math.prod(-(-n // 4) for n in size)
    model = made(name, size, **{**BOTH, **layers})
    own = copied(model.discriminator)
    model.training_step({"image": images(2, size)}, 0)
    assert math.isfinite(model.seen[-1]["loss"]) and not same(copied(model.discriminator), own)


def test_terms_are_off_by_default():
    terms = RealismTerms()
    assert terms.perceptual_weight == terms.adversarial == 0
