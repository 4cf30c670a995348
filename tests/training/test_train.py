"""The training loop: exact resume, budgets, locks, wrong checkpoints, non-finite losses."""

import json
import signal

import pytest
import torch

from verisim.data.spec import Images, ImageSpec
from verisim.data.stream import BatchStream
from verisim.errors import CheckpointError, DataError, VerisimError
from verisim.hub.weights import load_model, read_card
from verisim.models import build_model
from verisim.models.sharding import shard
from verisim.training.checkpoint import load_state
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

PLAN = ModelPlan("toy", {})


def settings(**changes):
    base = {"max_steps": 30, "batch_size": 8, "log_every": 5, "checkpoint_steps": 10, "sample_minutes": 0.0}
    return TrainSettings(**{**base, **changes})


def run_folder(path):
    run = RunFolder(path)
    run.create({"recipe": "toy"})
    return run


class Killed(Exception):
    """Stands for a crash at a given step."""


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("at", [3, 10, 17, 29])
def test_resume_is_bit_identical(toy, noise_images, tmp_path, monkeypatch, at):
    """A run that dies at any step and is resumed ends with the very same weights, average and metrics."""
    whole = train(run_folder(tmp_path / "a"), PLAN, noise_images, settings(), quiet=True)
    loss = toy.training_loss

    def dies(self, x, label):
        if self.step == at:
            raise Killed
        return loss(self, x, label)

    monkeypatch.setattr(toy, "training_loss", dies)
    run = run_folder(tmp_path / "b")
    with pytest.raises(Killed):
        train(run, PLAN, noise_images, settings(), quiet=True)
    monkeypatch.setattr(toy, "training_loss", loss)
    again = train(run, PLAN, noise_images, settings(), resume=True, quiet=True)
    a, b = weights(whole.model), weights(again.model)
    assert all(torch.equal(a[k], b[k]) for k in a)
    rows = [[json.loads(s) for s in (tmp_path / r / "metrics.jsonl").read_text().splitlines()] for r in "ab"]
    strip = [[{k: v for k, v in row.items() if k != "seconds"} for row in r] for r in rows]
    assert strip[0] == strip[1]


def test_a_finished_run_goes_on(toy, noise_images, tmp_path):
    """20 steps, then 10 more: the same weights as 30 at once."""
    whole = train(run_folder(tmp_path / "a"), PLAN, noise_images, settings(), quiet=True)
    run = run_folder(tmp_path / "b")
    train(run, PLAN, noise_images, settings(max_steps=20), quiet=True)
    again = train(run, PLAN, noise_images, settings(), resume=True, quiet=True)
    a, b = weights(whole.model), weights(again.model)
    assert again.model.step == 30 and all(torch.equal(a[k], b[k]) for k in a)


def test_other_seed_gives_other_weights(toy, noise_images, tmp_path):
    """Control of the test above: equality is not trivial."""
    a = train(run_folder(tmp_path / "a"), PLAN, noise_images, settings(), quiet=True)
    b = train(run_folder(tmp_path / "b"), PLAN, noise_images, settings(seed=1), quiet=True)
    assert not torch.equal(weights(a.model)["net.0.weight"], weights(b.model)["net.0.weight"])


def test_damaged_checkpoint_falls_back(toy, noise_images, tmp_path):
    """A truncated newest checkpoint is passed over with a warning; the result is still exact."""
    whole = train(run_folder(tmp_path / "a"), PLAN, noise_images, settings(), quiet=True)
    run = run_folder(tmp_path / "b")
    train(run, PLAN, noise_images, settings(max_steps=20), quiet=True)
    newest = run.checkpoints()[0]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(UserWarning, match="Falling back"):
        again = train(run, PLAN, noise_images, settings(), resume=True, quiet=True)
    assert all(torch.equal(v, weights(again.model)[k]) for k, v in weights(whole.model).items())


def test_checkpoint_of_another_model_is_refused(toy, noise_images, tmp_path):
    """Resuming with another width names the first tensor that differs."""
    run = run_folder(tmp_path / "a")
    train(run, PLAN, noise_images, settings(), quiet=True)
    with pytest.raises(CheckpointError, match=r"another model or configuration.*net"):
        train(run, ModelPlan("toy", {"width": 4}), noise_images, settings(), resume=True, quiet=True)


def test_weights_file_rebuilds_the_model(toy, noise_images, tmp_path):
    """The exported file alone gives the same samples as the trained model."""
    run = run_folder(tmp_path / "a")
    made = train(run, PLAN, noise_images, settings(), class_names=("no", "yes"), quiet=True)
    model, card = load_model(run.path)
    made.model.use_channels_last()  # as loading does; another layout rounds differently
    g = [torch.Generator().manual_seed(1) for _ in range(2)]
    assert torch.equal(model.sample(4, generator=g[0]), made.model.eval().sample(4, generator=g[1]))
    assert card == made.card == read_card(run.weights)
    assert card.training["class_counts"] == [50, 50]


def test_time_budget_stops(toy, noise_images, tmp_path):
    """max_minutes alone ends a run that has no step limit."""
    done = train(
        run_folder(tmp_path / "a"), PLAN, noise_images, settings(max_steps=0, max_minutes=0.01), quiet=True
    )
    assert done.card is not None and done.model.elapsed >= 0.6 and done.model.step > 0


def test_two_runs_in_one_folder(tmp_path):
    """A folder in use and a folder that holds a run are both refused with the remedy."""
    run = run_folder(tmp_path / "a")
    with run.locked(), pytest.raises(VerisimError, match="Another process"):
        with RunFolder(tmp_path / "a").locked():
            pass
    with pytest.raises(VerisimError, match=r"already holds a run.*--resume"):
        run.create({})


def test_nan_loss_stops_after_ten(toy, noise_images, tmp_path, monkeypatch):
    """A loss that stays NaN stops the run with advice; the weights are not touched by bad steps."""
    monkeypatch.setattr(
        toy, "training_loss", lambda self, x, y: (self.net(x).flatten(1).sum(1) * torch.nan, {})
    )
    with pytest.raises(VerisimError, match=r"not finite for ten steps.*--model.lr"):
        train(run_folder(tmp_path / "a"), PLAN, noise_images, settings(), quiet=True)


def test_the_bad_batch_is_kept_and_can_be_replayed(toy, noise_images, tmp_path, monkeypatch):
    """The message names a file with images, indices and seed, from which the very same loss comes out."""

    def loss(self, x, label):
        noise = torch.where(torch.randn(len(x)) > -0.5, torch.inf, 1.0) * torch.rand(len(x))
        return self.net(x).flatten(1).mean(1) * 0 + noise, {}

    monkeypatch.setattr(toy, "training_loss", loss)
    run = run_folder(tmp_path / "a")
    with pytest.raises(VerisimError, match=r"ten steps.*is in .*bad-batch-000000009.safetensors") as stop:
        train(run, PLAN, noise_images, settings(), quiet=True)
    found = load_state(run.path / "bad-batch-000000009.safetensors")
    assert str(run.path / "bad-batch-000000009.safetensors") in str(stop.value)
    assert torch.equal(found["image"], noise_images.pixels[found["index"]])
    assert torch.equal(found["label"], noise_images.labels[found["index"]])
    assert torch.equal(found["index"], BatchStream(noise_images, 8, 30, lambda: 0).indices(9))
    model = toy(noise_images.spec)
    torch.manual_seed(found["noise_seed"])
    again = loss(model, found["image"], found["label"])[0]
    assert 0 < torch.isfinite(again).sum() < len(again)
    assert torch.equal(again, found["loss"]) and found["step"] == 9 and found["rank"] == 0


def test_skipped_steps_are_counted(toy, noise_images, tmp_path, monkeypatch):
    """One bad step is one in metrics.jsonl and on the card, no more after a crash and resuming; clean runs say nothing."""
    loss = toy.training_loss

    def once(self, x, label):
        found = loss(self, x, label)[0]
        if self.step == 24 and not getattr(self, "again", False):
            raise Killed
        return found * (torch.nan if self.step == 7 else 1.0), {}

    monkeypatch.setattr(toy, "training_loss", once)
    run = run_folder(tmp_path / "a")
    with pytest.raises(Killed):
        train(run, PLAN, noise_images, settings(), quiet=True)
    monkeypatch.setattr(toy, "again", True, raising=False)
    outcome = train(run, PLAN, noise_images, settings(), resume=True, quiet=True)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(r["step"], r.get("skipped", 0)) for r in rows] == [
        (s, int(s > 7)) for s in (5, 10, 15, 20, 25, 30)
    ]
    assert outcome.card.training["skipped_steps"] == 1
    assert not list(run.path.glob("bad-batch*"))


def test_metrics_are_strict_json(toy, noise_images, tmp_path, monkeypatch):
    """A loss that is NaN when a line is due is written as null, which every JSON reader takes."""
    loss = toy.training_loss
    monkeypatch.setattr(
        toy,
        "training_loss",
        lambda self, x, y: (loss(self, x, y)[0] * (torch.nan if self.step == 9 else 1), {}),
    )
    run = run_folder(tmp_path / "a")
    train(run, PLAN, noise_images, settings(), quiet=True)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in run.metrics.read_text().splitlines()]
    assert [r["step"] for r in rows if r["loss"] is None] == [10]


def test_nine_bad_steps_do_not_stop(toy, noise_images, tmp_path, monkeypatch):
    """Nine in a row, a good one, nine more: the run goes on, with eighteen counted."""
    loss = toy.training_loss
    bad = {*range(2, 11), *range(12, 21)}
    monkeypatch.setattr(
        toy,
        "training_loss",
        lambda self, x, y: (loss(self, x, y)[0] * (torch.nan if self.step in bad else 1), {}),
    )
    outcome = train(run_folder(tmp_path / "a"), PLAN, noise_images, settings(), quiet=True)
    assert outcome.model.skipped == 18 and outcome.card.training["skipped_steps"] == 18


def test_no_budget_is_an_error():
    """A run without an end is refused."""
    with pytest.raises(VerisimError, match="max_steps"):
        TrainSettings()


def test_stream_covers_each_pass_once(noise_images):
    """Every image once per pass, and two ranks share a global batch without overlap."""
    one = BatchStream(noise_images, 10, 10, lambda: 0, seed=3)
    seen = torch.cat([one.indices(k) for k in range(10)])
    assert sorted(seen.tolist()) == list(range(100))
    ranks = [BatchStream(noise_images, 5, 10, lambda: 0, 3, lambda r=r: (r, 2)) for r in range(2)]
    both = torch.cat([torch.cat([r.indices(k) for r in ranks]) for k in range(10)])
    assert torch.equal(both, seen)


def test_stream_starts_where_told(noise_images):
    """Batch k is the same whether the stream began at 0 or at k."""
    a = list(BatchStream(noise_images, 7, 9, lambda: 0))
    b = list(BatchStream(noise_images, 7, 9, lambda: 5))
    assert len(a) == 9 and len(b) == 4 and torch.equal(a[5]["image"], b[0]["image"])


def test_stream_refuses_other_ranges():
    """Images in [0, 1] are not trained on in silence."""
    images = Images(torch.rand(10, 1, 8, 8), ImageSpec((8, 8), low=0.0))
    with pytest.raises(DataError, match=r"\[-1, 1\].*to_range"):
        BatchStream(images, 2, 1, lambda: 0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"select": "best"}, "select best needs whole networks"),
        ({"channels_last": True}, "channels_last true needs whole networks"),
        ({"snapshot_steps": 5}, "snapshot_steps needs whole networks.*--training.strategy ddp"),
        ({"strategy": "fsdp_cpu_offload"}, "fsdp_cpu_offload is not supported; the sharded one is fsdp"),
    ],
)
def test_sharded_training_says_what_it_lacks(changes, text):
    with pytest.raises(VerisimError, match=text):
        TrainSettings(**{"max_steps": 1, "strategy": "fsdp", **changes})


def test_a_model_that_learns_beside_its_network_is_not_cut():
    model = build_model("dcgan", {}, ImageSpec((16, 16)))
    with pytest.raises(
        VerisimError, match=r"learns others beside it .'discriminator.*--training.strategy ddp"
    ):
        shard(model, None)


def test_signals_do_afterwards_what_they_did_before(toy, tmp_path, noise_images):
    """A process that has trained can be stopped like any other."""
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    train(
        run_folder(tmp_path / "run"), PLAN, noise_images, settings(max_steps=1, accelerator="cpu"), quiet=True
    )
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_masks_reach_the_training_step(toy, tmp_path, noise_images, monkeypatch):
    """Each batch that a model sees holds the codes (B, 1, *S) uint8 of its own images."""
    codes = (noise_images.pixels > 0).to(torch.uint8)
    seen = []
    monkeypatch.setattr(toy, "on_train_batch_start", lambda self, batch, i: seen.append(batch), raising=False)
    images = Images(noise_images.pixels, noise_images.spec, noise_images.labels, segmentation=codes)
    train(run_folder(tmp_path / "run"), PLAN, images, settings(max_steps=2, accelerator="cpu"), quiet=True)
    assert len(seen) == 2 and all(b["mask"].dtype == torch.uint8 for b in seen)
    assert all(torch.equal(b["mask"], (b["image"] > 0).to(torch.uint8)) for b in seen)
