"""What happens around the steps of a run: seeding, budget, checkpoints, pictures, progress, metrics."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Callback
from lightning.pytorch.loggers.logger import Logger
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from verisim.data.mosaic import save_mosaic
from verisim.hub.averages import save_snapshot
from verisim.seeding import generator
from verisim.training.run_folder import KEEP, RunFolder
from verisim.training.settings import TrainSettings


class StepCallback(Callback):
    """Has `after_step`, which comes once per step of the optimiser, in however many parts its batch came."""

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.after_step(trainer, model)

    def after_step(self, trainer: Any, model: Any) -> None:
        """What is to be done after a step."""


class Steps(StepCallback):
    """Seeds each step, sets its learning rate, counts it, stops when the budget is spent. Comes first."""

    def __init__(self, settings: TrainSettings) -> None:
        self.total = settings.max_steps or None
        self.seconds = settings.max_minutes * 60
        self.clock = time.process_time if settings.clock == "cpu" else time.monotonic
        self.last = 0.0

    def on_train_start(self, trainer: Any, model: Any) -> None:
        self.last = self.clock()

    def on_train_batch_start(self, trainer: Any, model: Any, batch: Any, batch_idx: int) -> None:
        model.part = batch_idx % trainer.accumulate_grad_batches
        model.begin_step()
        scale = model.lr_scale(model.step, self.total)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * scale

    def after_step(self, trainer: Any, model: Any) -> None:
        model.end_step()
        now = self.clock()
        model.elapsed, self.last = model.elapsed + now - self.last, now
        spent = 0 < self.seconds <= model.elapsed or (self.total is not None and model.step >= self.total)
        if trainer.strategy.reduce_boolean_decision(spent, all=False):
            trainer.should_stop = True


class Pictures(StepCallback):
    """A grid of samples now and then, drawn with a generator of its own."""

    def __init__(self, run: RunFolder, minutes: float, count: int = 16) -> None:
        self.run, self.seconds, self.count = run, minutes * 60, count
        self.next = time.monotonic() + self.seconds

    def after_step(self, trainer: Any, model: Any) -> None:
        if self.seconds and time.monotonic() >= self.next and trainer.is_global_zero:
            draw_samples(model, self.run, self.count)
            self.next = time.monotonic() + self.seconds


class Snapshots(StepCallback):
    """Writes the power-function averages every `steps` steps, to choose a length from after training."""

    def __init__(self, run: RunFolder, steps: int) -> None:
        self.run, self.steps = run, steps

    def after_step(self, trainer: Any, model: Any) -> None:
        if trainer.is_global_zero and model.step % self.steps == 0:
            save_snapshot(self.run.averages, model.power_ema, model.step)


def draw_samples(model: Any, run: RunFolder, count: int = 16) -> None:
    """Write samples/step-N.png with the same noise every time, so that progress can be seen."""
    if not model.can_sample:
        return
    images = model.sample(count, generator=generator("pictures", model.seed))
    save_mosaic(run.samples / f"step-{model.step:09d}.png", images)


class Checkpoints(StepCallback):
    """Saves by time and by step, on SIGTERM and Ctrl-C, and at the end. Comes last."""

    def __init__(self, run: RunFolder, settings: TrainSettings) -> None:
        self.run, self.seconds, self.steps = run, settings.checkpoint_minutes * 60, settings.checkpoint_steps
        self.next = time.monotonic() + self.seconds
        self.signal: int | None = None

    def on_train_start(self, trainer: Any, model: Any) -> None:
        def note(number: int, frame: Any) -> None:
            self.signal = number
            print(
                f"Signal {signal.Signals(number).name}: saving and stopping after this step.", file=sys.stderr
            )

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, note)

    def after_step(self, trainer: Any, model: Any) -> None:
        due = time.monotonic() >= self.next or (self.steps > 0 and model.step % self.steps == 0)
        stop = trainer.strategy.reduce_boolean_decision(self.signal is not None, all=False)
        if stop:
            trainer.should_stop = True
        if trainer.strategy.reduce_boolean_decision(due or stop, all=False):
            self.save(trainer, model)

    def save(self, trainer: Any, model: Any) -> None:
        trainer.save_checkpoint(self.run.checkpoint_path(model.step))
        self.next = time.monotonic() + self.seconds
        if trainer.is_global_zero:
            for old in self.run.checkpoints()[KEEP:]:
                old.unlink(missing_ok=True)


@contextmanager
def signals_restored() -> Iterator[None]:
    """What SIGTERM and Ctrl-C did before, they do afterwards: Lightning puts them back before its callbacks are done."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Bar(StepCallback):
    """Progress with time left, by steps or by time; a line now and then where there is no terminal."""

    def __init__(self, settings: TrainSettings, every: float = 30.0) -> None:
        self.settings, self.every = settings, every
        self.bar: Progress | None = None
        self.next = 0.0

    def done(self, model: Any) -> float:
        """Share of the run that is done: of the budget that will end first."""
        s = self.settings
        by_steps = model.step / s.max_steps if s.max_steps else 0.0
        return min(1.0, max(by_steps, model.elapsed / 60 / s.max_minutes if s.max_minutes else 0.0))

    def on_train_start(self, trainer: Any, model: Any) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=None)
            self.task = self.bar.add_task("training", total=1.0)
            self.bar.start()

    def after_step(self, trainer: Any, model: Any) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or now < self.next:
            return
        self.next = now + (0.5 if self.bar else self.every)
        loss = trainer.callback_metrics.get("loss")
        text = f"step {model.step}" + ("" if loss is None else f"  loss {float(loss):.4g}")
        if self.bar:
            self.bar.update(self.task, completed=self.done(model), description=text)
        else:
            print(f"{text}  {self.done(model):.0%} of the budget", file=sys.stderr, flush=True)

    def teardown(self, trainer: Any, model: Any, stage: str) -> None:
        if self.bar:
            self.bar.stop()


class JsonLines(Logger):
    """metrics.jsonl: one line {'step', 'seconds', ...} per logging interval; survives resuming.

    What is not finite is written as null: NaN is not JSON.
    """

    def __init__(self, run: RunFolder, model: Any) -> None:
        super().__init__()
        self.run, self.model = run, model

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Settings are in config.yaml."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.model.global_rank:  # one process writes
            return
        row = {k: v if math.isfinite(v) else None for k, v in metrics.items() if k != "epoch"}
        line = {"step": self.model.step, "seconds": round(self.model.elapsed, 3), **row}
        if self.model.skipped:  # steps without a finite loss so far
            line["skipped"] = self.model.skipped
        with open(self.run.metrics, "a") as f:
            f.write(json.dumps(line, allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """Forget lines after `step`: they will be written again."""
        if self.run.metrics.exists():
            lines = self.run.metrics.read_text().splitlines()
            kept = [s for s in lines if s.endswith("}") and json.loads(s)["step"] <= step]
            self.run.metrics.write_text("".join(s + "\n" for s in kept))
