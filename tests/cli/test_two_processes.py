"""Two gloo processes train one model on disjoint halves of every batch."""

import os
import subprocess
import sys

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
