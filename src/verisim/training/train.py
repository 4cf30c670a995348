"""Train a model into a run folder, or go on with one that was stopped or killed."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from verisim.data.spec import Images
from verisim.data.stream import BatchStream
from verisim.devices import memory_asked
from verisim.errors import CheckpointError, LossError, VerisimError
from verisim.hub.averages import save_snapshot
from verisim.hub.weights import ModelCard, save_model
from verisim.models import build_model
from verisim.models.base import GenerativeModel
from verisim.training.bad_batch import save_bad_batch
from verisim.training.callbacks import (
    Bar,
    Checkpoints,
    JsonLines,
    Pictures,
    Snapshots,
    Steps,
    draw_samples,
    signals_restored,
)
from verisim.training.checkpoint import SafeCheckpointIO, load_state
from verisim.training.compiling import compile_network, compiler_failed
from verisim.training.resources import device_name
from verisim.training.run_folder import RunFolder
from verisim.training.selection import Selection, check_selectable, hold_out, take_selected
from verisim.training.settings import TrainSettings
from verisim.training.sharding import Sharded
from verisim.training.thin_convolutions import guard_thin_convolutions


@dataclass(frozen=True)
class ModelPlan:
    """Which model to train: its name, its settings, and what its recipe is called."""

    name: str
    settings: dict[str, Any]
    recipe: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    model: GenerativeModel
    card: ModelCard | None  # None: stopped by a signal before the end
    signal: int | None = None


def train(
    run: RunFolder,
    plan: ModelPlan,
    images: Images,
    settings: TrainSettings,
    *,
    class_names: tuple[str, ...] = (),
    fingerprint: str = "",
    resume: bool = False,
    quiet: bool = False,
) -> Outcome:
    """Train `plan` on `images` (in [-1, 1]) into `run`; with resume=True continue from its checkpoint.

    The same seed, data and number of threads give bit-identical weights on a CPU, whether or not the
    run was interrupted. With settings.select "best" a share of the patients is held out, and the weights that
    did best on them are kept. Raises VerisimError for what a user can mend.
    """
    images, held = hold_out(images, settings)
    with run.locked() if is_first_process() else contextlib.nullcontext():
        seed_everything(settings.seed, verbose=False)
        checkpoint = run.newest_checkpoint() if resume else None
        state = {} if checkpoint is None else load_state(checkpoint)
        model = _build(plan, images, settings, len(class_names), state)
        check_selectable(model, settings)
        _check_accumulation(model, settings)
        if checkpoint is not None:
            _check_fits(model, state, checkpoint)
        else:
            model.prepare(images.pixels)
        stopped = _fit(run, model, images, held, settings, checkpoint, quiet)
        if stopped is not None:
            return Outcome(model, None, stopped)
        if settings.strategy == "fsdp":  # no process holds the whole model, but the last checkpoint does
            state = load_state(run.checkpoint_path(model.step))
            model = _build(plan, images, settings, len(class_names), state)
            model.on_load_checkpoint(state)
            model.load_state_dict(state["state_dict"])
        selected = take_selected(model, held, settings)
        model.finalise(images.pixels, images.labels)
        facts = {**_facts(model, settings, images, fingerprint), **selected}
        card = ModelCard(
            plan.name, plan.settings, images.spec, len(class_names), class_names, plan.recipe, facts
        )
        if is_first_process():
            if model.power_ema is not None:
                save_snapshot(run.averages, model.power_ema, model.step)
            save_model(run.weights, model, card)
            draw_samples(model, run)
        return Outcome(model, card)


def _build(
    plan: ModelPlan, images: Images, settings: TrainSettings, classes: int, state: dict[str, Any]
) -> GenerativeModel:
    """The plan's model with its averages; `state`: the checkpoint it will go on from, or {}."""
    own = state.get("verisim", {}).get("settings", {})  # what it needs not read from elsewhere again
    model = build_model(plan.name, {**plan.settings, **own}, images.spec, classes)
    model.seed = settings.seed
    model.meet(images)
    if settings.ema:
        model.enable_ema(settings.ema)
    if settings.snapshot_steps:
        model.enable_power_ema()
    return model


def is_first_process() -> bool:
    """False in the processes that a distributed strategy starts beside the first one."""
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"


def leave_processes() -> None:
    """End the talk among the processes, before the interpreter ends: gloo's threads would abort it (exit code -6)."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _fit(
    run: RunFolder,
    model: GenerativeModel,
    images: Images,
    held: Images | None,
    settings: TrainSettings,
    checkpoint: Any,
    quiet: bool,
) -> int | None:
    """Run Lightning; returns the number of the signal that stopped it, or None at the end of the run."""
    if checkpoint is not None:
        model.on_load_checkpoint(load_state(checkpoint))  # where the stream and the budget stand
        if _budget_spent(model, settings):
            model.load_state_dict(load_state(checkpoint)["state_dict"])
            return None
    if settings.channels_last:
        model.use_channels_last()
    if settings.compile:
        compile_network(model, settings.compile)
    guard_thin_convolutions(model)
    jsonl = JsonLines(run, model)
    jsonl.rewind(model.step)
    saver = Checkpoints(run, settings)
    callbacks = [
        Steps(settings),
        *([] if held is None else [Selection(held, settings)]),
        *([] if settings.strategy == "fsdp" else [Pictures(run, settings.sample_minutes)]),
        *([Snapshots(run, settings.snapshot_steps)] if settings.snapshot_steps else []),
        *([] if quiet else [Bar(settings)]),
        saver,
    ]
    trainer = _trainer(run, settings, callbacks, jsonl, model)
    if trainer.world_size > 1:
        atexit.register(leave_processes)
    stream = BatchStream(
        images,
        settings.batch_size,
        settings.max_steps or None,
        lambda: model.step,
        settings.seed,
        lambda: (trainer.global_rank, trainer.world_size),
        settings.accumulate,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*(num_workers|stateful|mid-epoch|in eval mode|LeafSpec).*"
        )
        try:
            with signals_restored():
                trainer.fit(
                    model, DataLoader(stream, batch_size=None), ckpt_path=checkpoint, weights_only=True
                )
        except LossError as e:
            path = save_bad_batch(run, model, images, stream, e)
            raise LossError(f"{e} The last of these batches, with its seed, is in {path}.", e.loss) from e
        except (RuntimeError, MemoryError) as e:
            if (asked := memory_asked(e)) is not None:
                raise VerisimError(_memory_sentence(model, settings, asked)) from e
            if (failed := compiler_failed(e, settings.compile)) is not None:
                raise failed from e
            if "mixed torch.Tensor and DTensor" not in str(e):
                raise
            raise VerisimError(
                f"A {type(model).__name__} uses parts of its network by themselves, which strategy fsdp keeps cut up. "
                f"Use --training.strategy ddp."
            ) from e
    if saver.signal is None:
        saver.save(trainer, model)
    return saver.signal


def _memory_sentence(model: GenerativeModel, settings: TrainSettings, asked: str) -> str:
    part = settings.batch_size // settings.accumulate
    shape = "x".join(map(str, model.spec.shape))
    halves = f"--training.accumulate {2 * settings.accumulate} (the same step in half of the memory)"
    smaller = "a smaller --training.batch_size" if part == 1 or not model.automatic_optimization else halves
    other = "" if settings.precision == "bf16" else "--training.precision bf16; "
    return (
        f"Training on {part} image(s) of {shape} at a time needs more memory than there is{asked}. What helps: {smaller}; "
        f"{other}smaller images (--data.size); a narrower network. 'verisim profile' says what a step takes."
    )


def _trainer(
    run: RunFolder, settings: TrainSettings, callbacks: list, jsonl: JsonLines, model: GenerativeModel
) -> Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    loggers = [jsonl, TensorBoardLogger(run.path, name="tensorboard", version="")]
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings, model),
        precision="bf16-mixed" if settings.precision == "bf16" else "32-true",
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=(settings.clip or None) if model.automatic_optimization else None,
        max_epochs=-1,  # the budget ends a run (callbacks.Steps), also one that was finished and goes on
        max_steps=-1,
        callbacks=callbacks,
        logger=loggers,
        plugins=[SafeCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=settings.log_every,
        use_distributed_sampler=False,
    )


def _strategy(settings: TrainSettings, model: GenerativeModel) -> str | Sharded:
    """The strategy asked for; ddp in the form that a model needs whose steps do not use all parameters."""
    processes = settings.devices * settings.num_nodes
    if settings.strategy == "fsdp":
        return Sharded(processes)
    several = processes > 1
    if several and model.skips_parameters and settings.strategy in ("auto", "ddp"):
        return "ddp_find_unused_parameters_true"
    return settings.strategy


def _budget_spent(model: GenerativeModel, settings: TrainSettings) -> bool:
    by_steps = 0 < settings.max_steps <= model.step
    return by_steps or 0 < settings.max_minutes * 60 <= model.elapsed


def _check_accumulation(model: GenerativeModel, settings: TrainSettings) -> None:
    """VerisimError if the batches of a model are to come in parts that steps its optimisers by itself."""
    if settings.accumulate > 1 and not model.automatic_optimization:
        raise VerisimError(
            f"training.accumulate does not work for a {type(model).__name__}, whose networks take steps by turns within "
            f"a batch. Lower training.batch_size instead."
        )


def _check_fits(model: GenerativeModel, state: dict[str, Any], path: Any) -> None:
    """Refuse a checkpoint of another model, naming what differs."""
    if "state_dict" not in state or "verisim" not in state:
        raise CheckpointError(f"{path} holds no training state.")
    have, want = state["state_dict"], model.state_dict()
    odd = sorted(set(have) ^ set(want)) or [k for k in want if have[k].shape != want[k].shape]
    if odd:
        raise CheckpointError(
            f"{path} belongs to another model or configuration: {len(odd)} of {len(want)} tensors differ, "
            f"first '{odd[0]}'. Resume with the config.yaml of its own run folder."
        )


def _facts(
    model: GenerativeModel, settings: TrainSettings, images: Images, fingerprint: str
) -> dict[str, Any]:
    world = settings.devices * settings.num_nodes
    return {
        "device": device_name(settings.device),
        "steps": model.step,
        "skipped_steps": model.skipped,
        "seconds": round(model.elapsed, 1),
        "clock": settings.clock,
        "images_per_second": round(model.step * settings.batch_size * world / max(model.elapsed, 1e-9), 1),
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "training_images": len(images),
        "class_counts": None if images.labels is None else torch.bincount(images.labels).tolist(),
        "data_fingerprint": fingerprint,
        "seed": settings.seed,
    }
