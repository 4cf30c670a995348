"""A run killed by SIGKILL at a random moment and resumed ends with bit-identical weights."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from verisim.hub.weights import read_card
from verisim.training.checkpoint import load_state
from verisim.training.run_folder import RunFolder

TRAIN = [sys.executable, "-m", "verisim.cli.main", "train"]
OPTIONS = [
    "--data.count=40",
    "--data.size=16",
    "--data.label=label",
    "--training.max_steps=60",
    "--training.batch_size=4",
    "--training.checkpoint_steps=7",
    "--training.log_every=5",
]
SMALL = {
    "X-V-fix": ["--training.select=best", "--training.select_steps=4"],
    "X-G-fix": ["--model.nf=8"],
}
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*arguments):
    return subprocess.Popen([*TRAIN, *arguments], env=ENV, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def wait_for_step(run, step, process):
    """Until the run has a checkpoint of at least `step`, or ends."""
    while process.poll() is None:
        names = [p.name for p in run.checkpoints()]
        if names and int(names[0][5:14]) >= step:
            return
        time.sleep(0.01)


def weights(run):
    state = load_state(run.weights)["net"]
    return {k: v.numpy().tobytes() for k, v in state.items()}


@pytest.mark.parametrize("recipe", sorted(SMALL))
def test_sigkill_and_resume(recipe, tmp_path):
    """Two SIGKILLs at random steps change nothing, bit by bit, with automatic and manual optimisation.

    The VAE keeps its best weights on held-out patients: the same ones, with the same loss, from the same step.
    """
    options = [*OPTIONS, *SMALL[recipe]]
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    assert start(recipe, f"--out={whole.path}", *options).wait() == 0
    rng = random.Random(os.getpid())
    process = start(recipe, f"--out={broken.path}", *options)
    wait_for_step(broken, rng.randrange(7, 25), process)
    time.sleep(rng.random() * 0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process = start(f"--resume={broken.path}")
    wait_for_step(broken, rng.randrange(30, 50), process)
    process.kill()
    process.wait()
    assert start(f"--resume={broken.path}").wait() == 0
    assert weights(whole) == weights(broken)
    facts = [read_card(run.weights).training for run in (whole, broken)]
    names = ("selected_step", "validation_loss", "validation_images")
    assert [facts[0].get(n) for n in names] == [facts[1].get(n) for n in names]
    assert ("selected_step" in facts[0]) == (recipe == "X-V-fix")


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    """SIGTERM finishes the step, saves, exits with 143 and names the command to resume."""
    run = RunFolder(tmp_path / "run")
    options = [o for o in OPTIONS if "max_steps" not in o]
    process = start("X-V-fix", f"--out={run.path}", *options, "--training.max_steps=100000")
    wait_for_step(run, 7, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"--resume {run.path}" in err.decode()
    assert run.checkpoints() and not run.weights.exists()
