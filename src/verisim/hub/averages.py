"""Snapshots of power-function averages on disk, and the average of any length that they make."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from verisim.errors import CheckpointError
from verisim.models.power_ema import PowerEMA, mixing_weights
from verisim.training.checkpoint import load_state, read_metadata, save_state


def save_snapshot(folder: Path, averages: PowerEMA, step: int) -> Path:
    """Write all tracks at one step; returns the file."""
    path = folder / f"step-{step:09d}.safetensors"
    header = json.dumps({"step": step, "exponents": averages.exponents})
    save_state(path, {"tracks": [t.state_dict() for t in averages.tracks]}, header={"average": header})
    return path


def load_average(folder: Path, length: float, step: int = 0) -> dict[str, Tensor]:
    """The network's state averaged with a relative length, at a step (0 = the last), one file in memory.

    Raises CheckpointError if there are no snapshots and VerisimError if the length does not exist.
    """
    files = sorted(folder.glob("step-*.safetensors"))
    heads = [json.loads(read_metadata(f).get("average", "{}")) for f in files]
    if not files or not all(heads):
        raise CheckpointError(
            f"{folder} holds no snapshots of averages. Train with --training.snapshot_steps N to choose the "
            f"length of the average afterwards; this model has only the one it was trained with."
        )
    times = np.array([h["step"] for h in heads for _ in h["exponents"]], np.float64)
    exponents = np.array([g for h in heads for g in h["exponents"]])
    weights = mixing_weights(times, exponents, float(step or times.max()), length)
    total: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    k = 0
    for file in files:
        for last in load_state(file)["tracks"]:
            for name, value in last.items():
                if value.is_floating_point():
                    total[name] = total.get(name, torch.zeros(())) + float(weights[k]) * value.double()
            k += 1
    return {name: total[name].to(v.dtype) if name in total else v for name, v in last.items()}
