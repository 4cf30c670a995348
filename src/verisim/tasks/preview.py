"""Looking on while images are made: the estimates of every few steps, as one growing picture."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from verisim.data.atomic import atomic_write
from verisim.data.mosaic import mosaic
from verisim.diffusion.stepping import Step

COLUMNS = 8  # images shown
ROWS = 10  # moments shown where nobody says how many


class Preview:
    """A sampler's callback that rewrites a PNG: one row of x0 estimates per `every` steps, the newest last.

    The file is replaced whole, so that a viewer never sees half of it. Each batch begins a new picture.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.rows: list[Tensor] = []  # each (up to COLUMNS, C, *S)
        self.last = -1  # step of the last row

    def __call__(self, step: Step) -> None:
        if step.i < self.last:
            self.rows, self.last = [], -1
        if step.i % self.every or step.i == self.last:
            return
        self.rows.append(step.x0[:COLUMNS].detach().cpu().float())
        self.last = step.i
        picture = mosaic(torch.cat(self.rows), len(self.rows[0]), max(1, 64 // step.x0.shape[-1]))
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        atomic_write(self.path, buffer.getvalue())


def usual_interval(steps: int) -> int:
    """Steps between rows so that a whole walk makes about ROWS of them."""
    return max(1, -(-steps // ROWS))
