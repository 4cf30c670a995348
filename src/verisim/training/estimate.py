"""What a run will need, measured on one step rather than guessed: `verisim train ... --dry-run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from verisim.data.folder import Dataset
from verisim.models import build_model
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan


@dataclass(frozen=True)
class Estimate:
    """Needs of a run."""

    parameters: int
    training_bytes: int  # weights, gradients, optimiser, moving average, saved activations
    seconds_per_step: float
    steps: int | None

    def print(self) -> None:
        table = Table(title="dry run: nothing was trained", show_header=False)
        table.add_row("parameters", f"{self.parameters:,}")
        table.add_row("memory while training", f"{self.training_bytes / 2**30:.2f} GiB (without the images)")
        table.add_row("one step", f"{self.seconds_per_step:.2f} s on this machine's CPU")
        if self.steps:
            minutes = self.steps * self.seconds_per_step / 60
            table.add_row("whole run", f"{self.steps} steps, about {minutes:.0f} min")
        Console().print(table)


def estimate(plan: ModelPlan, dataset: Dataset, settings: TrainSettings) -> Estimate:
    """Measure a training step (forward and backward of the model's loss) at the run's batch size.

    The first step, in which libraries choose and compile their kernels, is not counted.
    """
    images = dataset.splits["train"]
    classes = 0 if images.labels is None else len(dataset.class_names)
    model = build_model(plan.name, plan.settings, images.spec, classes)
    if settings.channels_last:
        model.use_channels_last()
    parameters = sum(p.numel() for p in model.parameters())
    index = torch.arange(settings.batch_size) % len(images)
    batch = images.subset(index)
    model.prepare(batch.pixels)
    seconds, saved = 0.0, 0
    for _ in range(2):
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            loss, saved = with_saved_bytes(lambda: model.trial_loss(batch.pixels, batch.labels))
        loss.backward()
        seconds = time.perf_counter() - begin
    copies = 4 + (1 if settings.ema else 0)  # weights, gradients, two moments, average; float32
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)  # of a first stage
    memory = 4 * (copies * (parameters - frozen) + frozen) + saved
    return Estimate(parameters, memory, seconds, settings.max_steps or None)


def with_saved_bytes(forward: Callable[[], Tensor], without: Iterable[Tensor] = ()) -> tuple[Tensor, int]:
    """forward(), and the bytes that it keeps for the backward pass; each storage counts once.

    `without`: tensors that do not count, e.g. weights. What checkpointing keeps is not seen.
    """

    def place(t: Tensor) -> int:  # on the meta device, where nothing has an address, the storage itself
        return t.untyped_storage().data_ptr() or t.untyped_storage()._cdata

    others = {place(t) for t in without}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        saved[place(t)] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = forward()
    return loss, sum(size for where, size in saved.items() if where not in others)
