"""Power-function averages: their profile, and averages of other lengths made from snapshots of two."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from verisim.data.spec import ImageSpec
from verisim.errors import CheckpointError, VerisimError
from verisim.hub.averages import load_average, save_snapshot
from verisim.models.power_ema import (
    LENGTHS,
    LONGEST,
    PowerEMA,
    decay,
    exponent,
    mixing_weights,
    overlap,
    relative_length,
)
from verisim.training.run_folder import RunFolder
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan, train

GRID = 20_000  # points of the midpoint rule


def profile(t, g, points):
    """(g + 1) tau^g / t^(g + 1) at tau in (0, t], 0 after it."""
    return np.where(points <= t, (g + 1) * points**g / t ** (g + 1), 0.0)


def midpoints(end):
    return (np.arange(GRID) + 0.5) / GRID * end


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_length_is_the_standard_deviation_of_the_profile(length):
    """Eq. 4 both ways, and against the profile itself, whose integral is 1."""
    g = exponent(length)
    assert relative_length(g) == pytest.approx(length, rel=1e-9)
    tau = midpoints(1.0)
    p = profile(1.0, g, tau) / GRID
    assert p.sum() == pytest.approx(1.0, abs=1e-4)
    p /= p.sum()
    mean = (p * tau).sum()
    assert np.sqrt((p * tau**2).sum() - mean**2) == pytest.approx(length, rel=1e-3)


def test_golden_exponents():
    """EDM2: lengths 0.05 and 0.10 have exponents 16.97 and 6.94."""
    assert [round(exponent(s), 2) for s in LENGTHS] == [16.97, 6.94]


def test_tracking_gives_the_profile_exactly():
    """The running update weighs step tau by the integral of the profile over (tau - 1, tau], to rounding."""
    g, steps = exponent(0.1), 60
    weights = np.zeros(steps)
    for t in range(1, steps + 1):
        weights *= decay(t, g)
        weights[t - 1] += 1 - decay(t, g)
    tau = np.arange(1, steps + 1)
    np.testing.assert_allclose(
        weights, (tau ** (g + 1) - (tau - 1) ** (g + 1)) / steps ** (g + 1), atol=1e-14
    )


@pytest.mark.parametrize(
    ("a", "b"), [((3.0, 6.9), (7.0, 17.0)), ((7.0, 2.0), (7.0, 2.0)), ((9.0, 1.5), (2.0, 4.0))]
)
def test_overlap_is_the_integral(a, b):
    """The closed form against the midpoint rule, either order, and symmetric."""
    tau = midpoints(max(a[0], b[0]))
    numeric = (profile(*a, tau) * profile(*b, tau)).sum() * max(a[0], b[0]) / GRID
    closed = float(overlap(*(np.array(v) for v in (*a, *b))))
    assert closed == pytest.approx(numeric, rel=2e-3)
    assert closed == pytest.approx(float(overlap(*(np.array(v) for v in (*b, *a)))), rel=1e-12)


def snapshots(every, total):
    times = np.repeat(np.arange(every, total + 1, every), 2).astype(float)
    return times, np.tile([exponent(s) for s in LENGTHS], total // every)


def test_the_mixture_is_the_least_squares_solution():
    """The weights equal those of a dense least-squares fit of the profiles on a fine grid."""
    times, exponents = snapshots(250, 1000)
    weights = mixing_weights(times, exponents, 1000.0, 0.15)
    tau = midpoints(1000.0)
    basis = np.stack([profile(t, g, tau) for t, g in zip(times, exponents)], 1)
    wanted = profile(1000.0, exponent(0.15), tau)
    dense = np.linalg.lstsq(basis, wanted, rcond=None)[0]
    np.testing.assert_allclose(basis @ weights, basis @ dense, atol=2e-3 * wanted.max())
    residual = np.square(basis @ weights - wanted).sum()
    for k in range(len(weights)):  # no other weights are nearer
        for change in (-0.01, 0.01):
            moved = weights.copy()
            moved[k] += change
            assert np.square(basis @ moved - wanted).sum() > residual


@pytest.mark.parametrize("k", [0, 3, 7])
def test_a_length_that_was_tracked_comes_back_itself(k):
    """Asking for what a snapshot is gives weight 1 on it and 0 on the others."""
    times, exponents = snapshots(250, 1000)
    weights = mixing_weights(times, exponents, times[k], LENGTHS[k % 2])
    np.testing.assert_allclose(weights, np.eye(len(times))[k], atol=1e-6)


class Walk(nn.Module):
    """A network whose weights wander as training would: a trend and an oscillation."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def at(self, t):
        with torch.no_grad():
            self.w.copy_(torch.tensor([np.log(1 + t), np.sin(t / 40), (t / 500) ** 2]))
            self.count.fill_(t)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.12, 0.2])
def test_the_mixture_reproduces_an_average_that_was_tracked(length, tmp_path):
    """From files of two tracks, an average of a third length, tracked all along, comes back to 1 % of the motion."""
    net, total = Walk(), 1000
    two, truth = PowerEMA(net), PowerEMA(net, (length,))
    for t in range(1, total + 1):
        net.at(t)
        two.update(net, t)
        truth.update(net, t)
        if t % 50 == 0:
            save_snapshot(tmp_path, two, t)
    made, wanted = load_average(tmp_path, length), truth.tracks[0].state_dict()
    motion = (net.w.detach() - wanted["w"]).abs().max()
    assert float((made["w"] - wanted["w"]).abs().max()) < 0.01 * float(motion)
    assert int(made["count"]) == total
    nearest = min(range(2), key=lambda k: abs(LENGTHS[k] - length))  # control: the nearest track alone
    alone = two.tracks[nearest].state_dict()["w"]
    assert float((alone - wanted["w"]).abs().max()) > 0.05 * float(motion)
    for k, tracked in enumerate(LENGTHS):  # and the tracks themselves exactly
        torch.testing.assert_close(load_average(tmp_path, tracked)["w"], two.tracks[k].state_dict()["w"])


def test_bad_lengths_and_missing_snapshots(tmp_path):
    """A length beyond the uniform average's, a step without snapshots, an empty folder: one sentence each."""
    for length in (0.0, -0.1, LONGEST, 0.5):
        with pytest.raises(VerisimError, match=r"does not exist; 0 < length < 0\.2887"):
            exponent(length)
    times, exponents = snapshots(250, 1000)
    with pytest.raises(VerisimError, match="at step 1200 needs a snapshot at or after it; the last is 1000"):
        mixing_weights(times, exponents, 1200.0, 0.1)
    with pytest.raises(CheckpointError, match=r"--training\.snapshot_steps"):
        load_average(tmp_path, 0.1)


def test_a_model_without_it_has_no_new_tensors(toy):
    """Old checkpoints stay loadable: the averages exist only where they are asked for."""
    model = toy(ImageSpec((8, 8)))
    before = set(model.state_dict())
    model.enable_power_ema()
    added = set(model.state_dict()) - before
    assert added and all(k.startswith("power_ema.tracks.") for k in added)


def test_training_writes_snapshots_and_resumes_to_the_same(toy, noise_images, tmp_path, monkeypatch):
    """A run that dies and is resumed has the same averages, bit for bit; they are no plain copy of the weights."""
    settings = TrainSettings(
        batch_size=8,
        max_steps=9,
        checkpoint_steps=4,
        snapshot_steps=2,
        precision="float32",
        sample_minutes=0.0,
    )
    loss, runs, models = toy.training_loss, [RunFolder(tmp_path / name) for name in "ab"], []

    def dies(self, x, label):
        if self.step == 5:
            raise RuntimeError("killed")
        return loss(self, x, label)

    for run, fault in zip(runs, (loss, dies)):
        run.create({})
        monkeypatch.setattr(toy, "training_loss", fault)
        with pytest.raises(RuntimeError, match="killed") if fault is dies else contextlib.nullcontext():
            models.append(train(run, ModelPlan("toy", {}), noise_images, settings, quiet=True).model)
    monkeypatch.setattr(toy, "training_loss", loss)
    train(runs[1], ModelPlan("toy", {}), noise_images, settings, resume=True, quiet=True)
    for run in runs:
        assert [int(f.stem[5:]) for f in sorted(run.averages.iterdir())] == [2, 4, 6, 8, 9]
    a, b = (load_average(run.averages, 0.08) for run in runs)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], v) for k, v in models[0].net.state_dict().items())
