"""Two gloo processes train one model on disjoint halves of every batch."""

import json
import os
import subprocess
import sys

import pytest
import torch

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


def two_processes(run, *options):
    """Train a U-Net on two processes; its last checkpoint and its weights."""
    command = [sys.executable, "-m", "verisim.cli.main", "train", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return load_state(run / "checkpoints" / "step-000000006.safetensors"), load_state(
        run / "weights.safetensors"
    )


def unet(run, strategy):
    """Six steps of a small denoising U-Net."""
    model = ["--model.channels=[8,16]", "--model.head_channels=8", "--data.count=40", "--data.size=16"]
    training = {"max_steps": 6, "max_minutes": 0, "batch_size": 4, "checkpoint_steps": 3, "ema": 0.5}
    where = {"accelerator": "cpu", "devices": 2, "strategy": strategy, "precision": "float32"}
    settings = {**training, **where, "channels_last": "false"}
    return ["X-D-fix", f"--out={run}", *model, *(f"--training.{k}={v}" for k, v in settings.items())]


def test_a_model_cut_over_two_processes(tmp_path):
    """FSDP: the weights, averages and optimiser of DDP to rounding, from parts; and it goes on from a checkpoint."""
    run = tmp_path / "fsdp"
    whole, _ = two_processes(tmp_path / "ddp", *unet(tmp_path / "ddp", "ddp"))
    parts, weights = two_processes(run, *unet(run, "fsdp"))
    assert parts["state_dict"].keys() == whole["state_dict"].keys()
    for name, w in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], w, rtol=1e-3, atol=1e-5)
    first = parts["optimizer_states"][0]["state"]
    assert first.keys() == whole["optimizer_states"][0]["state"].keys()
    (run / "checkpoints" / "step-000000006.safetensors").unlink()
    (run / "weights.safetensors").unlink()
    again, weights_again = two_processes(run, "--resume", str(run))
    assert all(torch.equal(again["state_dict"][k], w) for k, w in parts["state_dict"].items())
    assert all(torch.equal(weights_again["net"][k], w) for k, w in weights["net"].items())


def test_a_model_that_cannot_be_cut(tmp_path):
    """A prior over a first stage computes with one part of its network alone: a sentence, not torch's traceback."""
    tiny = [
        "--model.codes=16",
        "--model.first_stage_steps=2",
        "--model.prior_layers=2",
        "--model.prior_channels=8",
    ]
    command = [sys.executable, "-m", "verisim.cli.main", "train", "K-X1", f"--out={tmp_path / 'run'}", *tiny]
    training = {"max_steps": 4, "max_minutes": 0, "batch_size": 4, "strategy": "fsdp", "devices": 2}
    options = ["--data.count=40", "--data.size=16", "--training.accelerator=cpu"]
    options += [f"--training.{k}={v}" for k, v in training.items()]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command + options, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "strategy fsdp keeps cut up" in done.stderr


AGREEMENT = """
import sys
import torch
import torch.distributed as dist
from verisim.data.spec import ImageSpec
from verisim.models import build_model

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model = build_model("conv_vae", {"channels": (8, 8), "latent": 4}, ImageSpec((8, 8)))
one = torch.tensor([1.0, float("nan") if rank else 1.0])
print(model.is_finite(one), model.is_finite(torch.ones(2)))
dist.destroy_process_group()
"""


def test_a_step_is_skipped_by_all_processes_or_by_none(tmp_path):
    """A loss that is NaN in one process alone would leave the other waiting for its gradient for ever."""
    command = [sys.executable, "-c", AGREEMENT]
    both = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    assert [p.communicate(timeout=120)[0].split() for p in both] == [["False", "True"]] * 2
