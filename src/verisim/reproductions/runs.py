"""Train many runs, each in a fresh process of its own, a few at a time; finished ones are not repeated."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from verisim.devices import choose_device
from verisim.errors import VerisimError


@dataclass(frozen=True)
class Job:
    """One training run of a reproduction."""

    recipe: str
    variant: str
    folder: Path
    overrides: dict[str, str | int | float] = field(default_factory=dict)  # e.g. {"data.size": 32}

    def command(self) -> list[str]:
        verisim = [sys.executable, "-m", "verisim.cli.main", "train"]
        if (self.folder / "config.yaml").exists():
            return [*verisim, "--resume", str(self.folder)]
        options = [f"--{k}={v}" for k, v in self.overrides.items()]
        return [*verisim, self.recipe, "--variant", self.variant, "--out", str(self.folder), *options]

    @property
    def finished(self) -> bool:
        return (self.folder / "weights.safetensors").exists()


def at_once(threads: int = 1) -> int:
    """How many processes of `threads` threads to run: as many as there are cores for, but one alone on a GPU.

    A GPU that many runs share serves each of them badly.
    """
    if choose_device().type == "cuda":
        return 1
    return max(1, (os.cpu_count() or 1) // threads)


def train_all(jobs: list[Job], workers: int | None = None, threads: int = 1) -> None:
    """Run all unfinished jobs, `workers` processes of `threads` threads at a time (None = as at_once says).

    Budgets in processor time (training.clock: cpu) are fair whatever else the machine does. A job that
    fails does not stop the others; at the end all failures are named with the end of their logs.
    """
    waiting = [j for j in jobs if not j.finished]
    running: list[tuple[Job, subprocess.Popen]] = []
    failed: list[Job] = []
    workers = workers or at_once(threads)
    total, console = len(waiting), Console(stderr=True)
    while waiting or running:
        while waiting and len(running) < workers:
            job = waiting.pop(0)
            running.append((job, _start(job, threads)))
        time.sleep(0.2)
        for item in [r for r in running if r[1].poll() is not None]:
            running.remove(item)
            if item[1].returncode:
                failed.append(item[0])
            done = total - len(waiting) - len(running)
            state = "failed" if item[1].returncode else "trained"
            console.print(f"{done}/{total} {state}: {item[0].folder.name}", markup=False, highlight=False)
    if failed:
        logs = "\n".join(f"{j.folder}: {_tail(j.folder / 'log.txt')}" for j in failed)
        raise VerisimError(
            f"{len(failed)} of {total} runs failed; run the same command again to retry.\n{logs}"
        )


def _start(job: Job, threads: int) -> subprocess.Popen:
    job.folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with open(job.folder / "log.txt", "a") as log:
        return subprocess.Popen(job.command(), stdout=log, stderr=subprocess.STDOUT, env=env)


def _tail(path: Path) -> str:
    lines = path.read_text().strip().splitlines() if path.exists() else []
    return lines[-1] if lines else "no output"
