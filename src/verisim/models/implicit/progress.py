"""Where the training of a model of development stands, in a file: a killed run goes on to the same numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from verisim.errors import CheckpointError
from verisim.models.implicit.development import Development
from verisim.training.checkpoint import load_state, save_state


@dataclass(frozen=True)
class Progress:
    """A file that is written every `every` steps and at the end, atomically, and read at the start if it exists."""

    path: Path
    every: int = 1000

    def load(self, model: Development, optimisers: list[torch.optim.Optimizer], run: dict[str, Any]) -> int:
        """Put model and optimisers where the file says; returns the number of steps done, 0 without a file.

        `run`: seed and settings. Raises CheckpointError for a file of another model or run.
        """
        if not self.path.exists():
            return 0
        state = load_state(self.path)
        want = {**run, "names": list(model.names), "architecture": asdict(model.architecture)}
        have = state.get("run", {})
        odd = sorted(k for k in {*want, *have} if have.get(k) != want.get(k))
        if odd:
            raise CheckpointError(
                f"{self.path} belongs to another run: {odd[0]} is {have.get(odd[0])!r} there and {want.get(odd[0])!r} "
                f"here. Train with what it was begun with, or into another file."
            )
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        return int(state["step"])

    def save(
        self, model: Development, optimisers: list[torch.optim.Optimizer], run: dict[str, Any], step: int
    ) -> None:
        """Write the state after `step` steps."""
        names = {"names": list(model.names), "architecture": asdict(model.architecture)}
        save_state(
            self.path,
            {
                "model": dict(model.state_dict()),
                "optimisers": [o.state_dict() for o in optimisers],
                "run": {**run, **names},
                "step": step,
            },
        )
