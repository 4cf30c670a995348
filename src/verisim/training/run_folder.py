"""The folder of one training run: what is where, and that only one process writes to it.

config.yaml        recipe, model, data and training settings, resolved
weights.safetensors  the trained model (verisim.hub.weights)
checkpoints/       the last two states to resume from
metrics.jsonl      losses by step; "skipped" counts steps whose loss was not finite
averages/          snapshots of power-function averages (training.snapshot_steps)
samples/           grids of samples made while training
environment.json   versions, machine, commit
card.md            model card
bad-batch-*.safetensors  the batch on which training broke down, if it did (holds training images)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from verisim import __version__
from verisim.data.atomic import atomic_write
from verisim.errors import CheckpointError, VerisimError
from verisim.training.checkpoint import load_state

KEEP = 2  # checkpoints


class RunFolder:
    """Paths and files of one run."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def averages(self) -> Path:
        return self.path / "averages"

    def create(self, config: dict[str, Any]) -> None:
        """Make the folder and write its configuration; refuse one that already holds a run."""
        if self.config_path.exists():
            raise VerisimError(
                f"{self.path} already holds a run. Continue it with 'verisim train --resume {self.path}', "
                f"or choose another folder with --out."
            )
        atomic_write(self.config_path, yaml.safe_dump(config, sort_keys=False).encode())
        self.write_json("environment.json", environment())

    def config(self) -> dict[str, Any]:
        if not self.config_path.exists():
            raise VerisimError(f"{self.path} is not a run folder: it has no config.yaml.")
        return yaml.safe_load(self.config_path.read_text())

    def write_json(self, name: str, value: Any) -> None:
        atomic_write(self.path / name, json.dumps(value, indent=1).encode())

    def read_json(self, name: str) -> Any:
        file = self.path / name
        return json.loads(file.read_text()) if file.exists() else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second process that wants it gets one clear sentence."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                raise VerisimError(
                    f"Another process is training in {self.path}. Wait for it, or choose another --out."
                ) from e
            yield

    # --- checkpoints ------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, newest first."""
        return sorted((self.path / "checkpoints").glob("step-*.safetensors"), reverse=True)

    def checkpoint_path(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:09d}.safetensors"

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones are named in a warning and passed over."""
        for path in self.checkpoints():
            try:
                load_state(path)
                return path
            except CheckpointError as e:
                warnings.warn(f"{e} Falling back to the checkpoint before it.", stacklevel=2)
        return None


def environment() -> dict[str, Any]:
    """Versions and machine: what a reader needs to judge or repeat a number."""
    packages = {}
    for name in ("torch", "lightning", "monai", "numpy", "torchmetrics", "scikit-learn"):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "verisim": __version__,
        "commit": _commit(),
        "python": sys.version.split()[0],
        "packages": packages,
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the source tree, with '+' if it has uncommitted changes; None outside of a checkout."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(here)]
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=5
        )
        if head.returncode == 0:
            dirty = subprocess.run(
                [*git, "status", "--porcelain", "--", str(here.parent)],
                capture_output=True,
                text=True,
                timeout=5,
            )
            return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    return None
