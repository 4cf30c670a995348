"""What a run will need, measured on one step rather than guessed: `verisim train ... --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from verisim.data.folder import Dataset
from verisim.models import build_model
from verisim.training.resources import measure
from verisim.training.settings import TrainSettings
from verisim.training.train import ModelPlan


@dataclass(frozen=True)
class Estimate:
    """Needs of a run."""

    parameters: int
    training_bytes: int  # weights, gradients, optimiser, moving average, saved activations
    seconds_per_step: float | None  # None: a step does not fit into this machine's memory
    steps: int | None
    device: str  # where the step was run

    def print(self) -> None:
        table = Table(title="dry run: nothing was trained", show_header=False)
        table.add_row("parameters", f"{self.parameters:,}")
        table.add_row("memory while training", f"{self.training_bytes / 2**30:.2f} GiB (without the images)")
        if self.seconds_per_step is None:
            table.add_row("one step", f"does not fit into the memory of this machine's {self.device}")
        else:
            table.add_row("one step", f"{self.seconds_per_step:.2g} s on this machine's {self.device}")
        if self.steps and self.seconds_per_step is not None:
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
    found = measure(
        model,
        images.pixels[:1],
        settings.batch_size // settings.accumulate,
        classes=classes,
        texts=images.texts,
        precision=settings.precision,
        ema=settings.ema > 0,
        device=settings.device,
    )
    seconds = None if found.seconds is None else found.seconds * settings.accumulate
    return Estimate(found.parameters, found.training_bytes, seconds, settings.max_steps or None, found.device)
