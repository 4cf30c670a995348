"""Two gloo processes train one model on disjoint halves of every batch."""

import json
import os
import subprocess
import sys

import pytest

from verisim.hub.weights import read_card
from verisim.training.checkpoint import load_state


def test_ddp_on_two_cpu_processes(tmp_path):
    """DDP by flag: it ends, one weights file is written, and both halves count in the throughput."""
    command = [sys.executable, "-m", "verisim.cli.main", "train", "X-V-fix", f"--out={tmp_path / 'run'}"]
    options = ["--data.count=60", "--data.size=16", "--model.width=8", "--training.precision=float32"]
    budget = ["--training.max_steps=8", "--training.batch_size=4", "--training.checkpoint_steps=4"]
    devices = ["--training.accelerator=cpu", "--training.devices=2", "--training.strategy=ddp"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command + options + budget + devices, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = read_card(tmp_path / "run" / "weights.safetensors")
    assert card.training["steps"] == 8
    state = load_state(next((tmp_path / "run" / "checkpoints").glob("step-000000008*")))
    assert state["verisim"]["step"] == 8


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (
            "K-X1",
            [
                "--model.codes=16",
                "--model.first_stage_steps=2",
                "--model.prior_layers=2",
                "--model.prior_channels=8",
            ],
        ),
        ("K-S8", ["--model.warmup_steps=2", "--model.channels=[8,8]", "--model.latent=4"]),
    ],
)
def test_models_that_skip_parameters_train_on_two_processes(recipe, options, tmp_path):
    """Plain 'ddp' is enough: a prior over a frozen autoencoder, and networks that learn in turn. One log is written."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "verisim.cli.main", "train", recipe, f"--out={run}", *options]
    data = ["--data.count=40", "--data.size=16", "--training.precision=float32", "--training.log_every=1"]
    budget = ["--training.max_steps=4", "--training.max_minutes=0", "--training.batch_size=4"]
    devices = ["--training.accelerator=cpu", "--training.devices=2", "--training.strategy=ddp"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command + data + budget + devices, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_card(run / "weights.safetensors").training["steps"] == 4
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 4
