"""The best weights on held-out training patients: exactly those of their step, resumable, never chosen by NaN."""

import json
import math
from dataclasses import replace

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import load_model
from verisim.models import build_model
from verisim.models.autoencoders.vqvae import VQVAE
from verisim.training.run_folder import RunFolder
from verisim.training.selection import held_out_loss, hold_out
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

PLAN = ModelPlan("toy", {})
VQ = {"codes": 12, "dim": 4, "channels": (8, 16), "lr": 3e-3}
PRIOR = {"prior": "transformer", "prior_layers": 1, "prior_channels": 16, "first_stage_steps": 12}


def settings(**changes):
    base = {"max_steps": 30, "batch_size": 8, "log_every": 5, "checkpoint_steps": 10, "sample_minutes": 0.0}
    return TrainSettings(**{**base, "select": "best", "select_steps": 4, **changes})


def run_folder(path):
    run = RunFolder(path)
    run.create({"recipe": "toy"})
    return run


def validated(run):
    """step -> loss on the held-out patients, as logged."""
    rows = [json.loads(s) for s in run.metrics.read_text().splitlines()]
    return {r["step"]: r["validation_loss"] for r in rows if "validation_loss" in r}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture
def wrecked(toy, monkeypatch):
    """The toy model with a learning rate that ruins it from step 14 on, so that the last weights are not the best."""
    monkeypatch.setattr(toy, "lr_scale", lambda self, step, total: 1.0 if step < 14 else 300.0)
    return toy


def test_hold_out_is_by_patient(noise_images):
    """Nobody on both sides, about the share asked for, the same for the same seed; 'last' holds nobody out."""
    people = replace(noise_images, patients=tuple(str(i // 4) for i in range(100)))
    rest, held = hold_out(people, settings(select_share=0.2))
    assert not set(rest.patients) & set(held.patients)
    assert len(rest) + len(held) == 100 and 8 <= len(held) <= 20
    assert torch.equal(held.pixels, hold_out(people, settings(select_share=0.2))[1].pixels)
    assert held.patients != hold_out(people, settings(select_share=0.2, seed=1))[1].patients
    assert hold_out(people, settings(select="last")) == (people, None)
    alone = replace(noise_images, patients=("one",) * 100)
    with pytest.raises(VerisimError, match=r"1 patient\(s\) with 100 image\(s\).*set training.select last"):
        hold_out(alone, settings())


def test_the_best_weights_are_those_of_their_step(wrecked, noise_images, tmp_path):
    """The file holds, bit by bit, the averaged weights of the step with the lowest loss; looking changes nothing."""
    run = run_folder(tmp_path / "a")
    found = train(run, PLAN, noise_images, settings(), quiet=True)
    losses, facts = validated(run), found.card.training
    assert sorted(losses) == [4, 8, 12, 16, 20, 24, 28]
    step = min(losses, key=losses.get)
    assert facts["selected_step"] == step and facts["validation_loss"] == losses[step]
    assert step < 20 and losses[28] > losses[step] and facts["steps"] == 30
    rest, held = hold_out(noise_images, settings())
    assert facts["training_images"] == len(rest) and facts["validation_images"] == len(held)
    plain = train(run_folder(tmp_path / "b"), PLAN, rest, settings(select="last", max_steps=step), quiet=True)
    assert "selected_step" not in plain.card.training
    model = load_model(run.path)[0]
    assert same(model.net.state_dict(), plain.model.sampling_net.state_dict())
    plain.model.step = step
    assert held_out_loss(plain.model, held, 8)[0] == losses[step]
    whole = train(run_folder(tmp_path / "c"), PLAN, rest, settings(select="last"), quiet=True)
    assert same(whole.model.net.state_dict(), found.model.net.state_dict())  # of the last step, both
    assert not same(model.net.state_dict(), whole.model.sampling_net.state_dict())


@pytest.mark.parametrize("at", [7, 13, 22])
def test_resuming_keeps_the_best(wrecked, noise_images, tmp_path, monkeypatch, at):
    """Killed before or after the best step: the same file, the same card, the same log."""
    whole = train(run_folder(tmp_path / "a"), PLAN, noise_images, settings(), quiet=True)
    loss = wrecked.training_loss

    def dies(self, x, label):
        if self.step == at and self.training:
            raise RuntimeError("killed")
        return loss(self, x, label)

    monkeypatch.setattr(wrecked, "training_loss", dies)
    run = run_folder(tmp_path / "b")
    with pytest.raises(RuntimeError, match="killed"):
        train(run, PLAN, noise_images, settings(), quiet=True)
    monkeypatch.setattr(wrecked, "training_loss", loss)
    again = train(run, PLAN, noise_images, settings(), resume=True, quiet=True)
    assert same(whole.model.state_dict(), again.model.state_dict())
    for name in ("selected_step", "validation_loss"):
        assert whole.card.training[name] == again.card.training[name]
    assert validated(run) == validated(RunFolder(tmp_path / "a"))


def test_nan_is_never_the_best(toy, noise_images, tmp_path, monkeypatch):
    """Validation losses of NaN select nothing; the last weights are kept, and a warning says so."""
    loss = toy.training_loss
    monkeypatch.setattr(
        toy,
        "training_loss",
        lambda self, x, y: (loss(self, x, y)[0] * (1 if self.training else torch.nan), {}),
    )
    run = run_folder(tmp_path / "a")
    with pytest.warns(UserWarning, match=r"ended at step 30: those of the last step are kept"):
        found = train(run, PLAN, noise_images, settings(), quiet=True)
    assert found.card.training["selected_step"] == 30 and found.card.training["validation_loss"] is None
    assert set(validated(run).values()) == {None}


def test_a_prior_is_selected_by_held_out_bits(tmp_path, monkeypatch):
    """Best autoencoder of the first stage frozen, best prior of the second kept, by bits per code of held-out images.

    A learning rate that ruins the end of both stages, so that neither best is the last.
    """
    ruin = {8, 9, 10, 11, 20, 21, 22, 23}
    monkeypatch.setattr(VQVAE, "lr_scale", lambda self, step, total: 100.0 if step in ruin else 1.0)
    g = torch.Generator().manual_seed(0)
    images = Images(torch.rand(40, 1, 16, 16, generator=g) * 2 - 1, ImageSpec((16, 16)))
    how = settings(max_steps=24, ema=0.9, precision="float32", select_share=0.2)
    run = run_folder(tmp_path / "a")
    found = train(run, ModelPlan("vqvae", {**VQ, **PRIOR}), images, how, quiet=True)
    losses, facts = validated(run), found.card.training
    assert sorted(losses) == [4, 8, 12, 16, 20, 24]
    prior = {s: v for s, v in losses.items() if s > 12}
    assert facts["selected_step"] == min(prior, key=prior.get) < 24
    model, held = load_model(run.path)[0], hold_out(images, how)[1]
    with torch.no_grad():
        bits = model.prior_loss(held.pixels, None)[0].double().mean()
    assert float(bits) == pytest.approx(facts["validation_loss"], rel=1e-5)
    first = {s: v for s, v in losses.items() if s <= 12}
    assert min(first, key=first.get) < 12
    short = replace(how, max_steps=min(first, key=first.get), select="last")
    with pytest.warns(UserWarning, match="never trained"):
        rest = hold_out(images, how)[0]
        plain = train(
            run_folder(tmp_path / "b"), ModelPlan("vqvae", {**VQ, **PRIOR}), rest, short, quiet=True
        )
    want = plain.model.sampling_net.autoencoder.state_dict()
    have = model.net.autoencoder.state_dict()
    assert all(torch.equal(v, have[k]) for k, v in want.items() if k != "observation.variance")


def test_the_rising_weight_of_the_kl_is_a_phase_of_its_own():
    """Losses with a small weight are lower for no merit: they are forgotten once the weight is whole."""
    model = build_model("conv_vae", {"latent": 4, "width": 8, "kl_warmup": 10}, ImageSpec((16, 16)))
    phases = []
    for model.step in (0, 8, 9, 50):
        phases.append(model.phase)
    assert phases == [0, 0, 1, 1]
    assert model.keep_if_best(1.0, 0) and not model.keep_if_best(2.0, 0)
    assert model.keep_if_best(3.0, 1) and not model.keep_if_best(math.nan, 1)
    assert model.best.loss == 3.0 and model.best.phase == 1


def test_adversarial_models_are_refused(tmp_path, noise_images):
    plan = ModelPlan("intro_vae", {"latent": 4, "width": 8, "warmup_steps": 2})
    with pytest.raises(VerisimError, match=r"best does not work for a IntroVAE.*Set training.select last"):
        train(run_folder(tmp_path / "a"), plan, noise_images, settings(), quiet=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"select_share": 0.0}, "select_share is 0; it must lie between 0 and 1"),
        ({"select_steps": 0}, "training.select_steps is 0; it must be at least 1"),
    ],
)
def test_bad_settings(changes, words):
    with pytest.raises(VerisimError, match=words):
        settings(**changes)
