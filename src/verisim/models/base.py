"""What every generative model shares: its image spec, its averaged network, its training step.

A model is a LightningModule. A subclass sets `self.net` (the network that sampling needs), writes
`training_loss` and `sample`, and gets EMA, per-step seeding and logging from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from verisim.data.spec import Images, ImageSpec
from verisim.errors import LossError, VerisimError, nearest
from verisim.models.power_ema import LENGTHS, PowerEMA
from verisim.models.sharding import shard
from verisim.seeding import derive_seed

Loss = tuple[Tensor, dict[str, Tensor]]  # per-sample loss (B,) and its parts, each (B,) or scalar

MOST_SKIPPED = 10  # steps in a row without a finite loss


@dataclass(frozen=True)
class Best:
    """The weights that did best on held-out training patients so far."""

    step: int  # batches seen
    loss: float  # mean over the held-out images
    phase: int  # of training (GenerativeModel.phase); losses of different phases are not compared
    net: dict[str, Tensor]  # state of the sampling network, on the CPU


@dataclass(frozen=True)
class SamplingOptions:
    """What a user may turn when sampling; subclasses add fields. This family has none."""


class GenerativeModel(LightningModule):
    """Base of all models. Images are (B, C, *S) float32 in [-1, 1]; classes are (B,) int64."""

    Options: ClassVar[type[SamplingOptions]] = SamplingOptions
    can_sample: ClassVar[bool] = True  # False: a detector or segmenter, which makes no images of its own
    family: ClassVar[str] = ""  # "gan", "vae", "autoregressive", "diffusion", ...
    skips_parameters: bool = False  # some steps leave some parameters without gradient

    net: nn.Module

    def __init__(self, spec: ImageSpec, num_classes: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes  # 0 = unconditional
        self.options = self.Options()
        self.ema: AveragedModel | None = None
        self.power_ema: PowerEMA | None = None
        self.best: Best | None = None  # of the present phase; only with training.select best
        self.source: Path | None = None  # the file this model was loaded from
        self.seed = 0
        self.step = 0  # steps done; with (seed, rank, part) it determines all randomness of a step
        self.part = 0  # which part of its batch a step is at; its gradient is the mean over all parts
        self.elapsed = 0.0  # seconds trained, over all resumptions
        self.skipped = 0  # steps without a finite loss, over all resumptions
        self.skipped_in_a_row = 0
        self.bad_loss: Tensor | None = None  # this step's loss, if it is not finite

    # --- what a subclass writes -------------------------------------------------------------------

    def training_loss(self, x: Tensor, label: Tensor | None) -> Loss:
        """Per-sample loss (B,) and a dict of its parts for images x (B, C, *S) in [-1, 1]."""
        raise VerisimError(f"{type(self).__name__} trains with its own training_step.")

    def trial_loss(self, x: Tensor, label: Tensor | None) -> Tensor:
        """A scalar whose backward pass is a typical training step; measured by dry runs."""
        return self.training_loss(x, label)[0].mean()

    @property
    def phase(self) -> int:
        """Which loss step `step` trains on: losses of one phase can be compared. Stages and warm-ups count up."""
        return 0

    @property
    def last_phase(self) -> int:
        """The phase of the step before `step`: the one that was trained last."""
        self.step -= 1
        found = self.phase
        self.step += 1
        return found

    def sample(
        self, n: int, condition: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, *S) in [-1, 1]; see verisim.roles.Sampler."""
        raise VerisimError(f"{type(self).__name__} cannot sample.")

    def optimizer(self) -> torch.optim.Optimizer | list[torch.optim.Optimizer]:
        """The optimiser(s) over this model's parameters."""
        raise VerisimError(f"{type(self).__name__} defines no optimiser.")

    def lr_scale(self, step: int, total: int | None) -> float:
        """Factor on every learning rate at `step` of `total` (None = unknown); constant by default."""
        return 1.0

    def prepare(self, x: Tensor) -> None:
        """Called once before the first step with the training images (N, C, *S), e.g. to measure them."""

    def meet(self, images: Images) -> None:
        """Called once when a run begins or goes on, before any weights are read: whom do the images show?"""
        self.learn_texts(images.texts)

    def learn_texts(self, texts: Sequence[str] | None) -> None:
        """Called before `prepare` with the training texts, or None; VerisimError if the model takes no text."""
        if texts is not None:
            raise VerisimError(
                f"A {self.family} model without a text encoder reads no texts. Leave out --data.text."
            )

    def read_texts(self, texts: Sequence[str]) -> Tensor:
        """The condition of texts, for `sample`; VerisimError if the model takes no text."""
        raise VerisimError(
            "This model was trained without texts, so it cannot be asked for one. Train one with "
            "--data.text COLUMN and --model.text words, e.g. recipe W-C5d."
        )

    def condition_of(self, label: Tensor | None, texts: Sequence[str] | None) -> Tensor | None:
        """What training_loss gets beside the images: their classes (B,), unless the model reads their texts."""
        return label

    def finalise(self, x: Tensor, label: Tensor | None) -> None:
        """Called once after training with the training images (N, C, *S), e.g. to fit a latent density."""

    def extra_state(self) -> dict[str, Tensor]:
        """Tensors beside `net` that sampling needs; stored with the weights."""
        return {}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take back what extra_state() gave."""

    def settings_to_rebuild(self) -> dict[str, Any]:
        """Constructor arguments that take the place of those given where the model is rebuilt from its own files."""
        return {}

    def use_channels_last(self) -> None:
        """Lay weights out as convolutions like them; numbers change by rounding only."""
        layout = torch.channels_last if self.spec.spatial_dims == 2 else torch.channels_last_3d
        for t in [*self.parameters(), *self.buffers()]:
            if t.ndim == self.spec.spatial_dims + 2:  # Module.to would fail on 4-dimensional ones in 3D
                t.data = t.data.contiguous(memory_format=layout)

    # --- the best weights -------------------------------------------------------------------------

    def keep_if_best(self, loss: float, phase: int) -> bool:
        """Keep a copy of the sampling network if `loss` is the lowest of its phase so far; NaN never is."""
        rival = self.best if self.best is not None and self.best.phase == phase else None
        if math.isnan(loss) or (rival is not None and loss >= rival.loss):
            return False
        net = {k: v.detach().cpu().clone() for k, v in self.sampling_net.state_dict().items()}
        self.best = Best(self.step, loss, phase, net)
        return True

    def take_best(self) -> None:
        """Put the best weights into the sampling network; nothing happens where none were kept."""
        if self.best is not None:
            self.sampling_net.load_state_dict(self.best.net)

    # --- sampling ---------------------------------------------------------------------------------

    @property
    def sampling_net(self) -> nn.Module:
        """The network to sample with: the moving average where there is one."""
        return self.net if self.ema is None else self.ema.module

    def configure_sampling(self, **options: Any) -> None:
        """Set sampling options by name; an unknown one is an error that lists those there are."""
        known = {f.name for f in fields(self.Options)}
        for name in options:
            if name not in known:
                has = f"It has: {', '.join(sorted(known))}." if known else "It has none."
                raise VerisimError(
                    f"A {self.family} model has no sampling option '{name}'.{nearest(name, known)} {has}"
                )
        self.options = replace(self.options, **options)

    def check_condition(self, n: int, condition: Tensor | None) -> Tensor | None:
        """Condition as (n,) int64 on the model's device, or VerisimError if it cannot be used."""
        if condition is None:
            return None
        if self.num_classes == 0:
            raise VerisimError(
                "This model was trained without classes, so it cannot be asked for one. "
                "Train it with --data.label COLUMN."
            )
        condition = torch.as_tensor(condition, device=self.device).long().expand(n)
        if int(condition.min()) < 0 or int(condition.max()) >= self.num_classes:
            raise VerisimError(
                f"Class {int(condition.max())} asked for; this model knows 0...{self.num_classes - 1}."
            )
        return condition

    # --- training ---------------------------------------------------------------------------------

    def enable_ema(self, decay: float) -> None:
        """Keep a moving average of `net`, warmed up as min(decay, (1 + k) / (10 + k)) at update k."""

        @torch.no_grad()
        def update(averaged: Sequence[Tensor], current: Sequence[Tensor], k: Tensor | int) -> None:
            d = min(decay, (1 + float(k)) / (10 + float(k)))
            for a, c in zip(averaged, current):
                if a.is_floating_point():
                    a.lerp_(c.to(a.dtype), 1 - d)
                else:
                    a.copy_(c)

        self.ema = AveragedModel(self.net, multi_avg_fn=update, use_buffers=True)
        self.ema.requires_grad_(False)
        self.ema.eval()

    def enable_power_ema(self, lengths: tuple[float, ...] = LENGTHS) -> None:
        """Keep power-function averages of `net`, from whose snapshots any other length can be made later."""
        self.power_ema = PowerEMA(self.net, lengths)

    def begin_step(self) -> None:
        """Reseed from (seed, rank, step, part of the batch): what follows depends on nothing else."""
        torch.manual_seed(self.step_seed)

    @property
    def step_seed(self) -> int:
        """What begin_step seeds with: all noise of this step follows from it."""
        more = (self.part,) if self.part else ()
        return derive_seed("step", self.seed, self.global_rank, self.step, *more)

    def end_step(self) -> None:
        """Count the step and update the moving average; LossError at the tenth step in a row without a finite loss."""
        self._count_skipped()
        self.step += 1
        if self.ema is not None:
            self.ema.update_parameters(self.net)
        if self.power_ema is not None:
            self.power_ema.update(self.net, self.step)

    def _count_skipped(self) -> None:
        bad, self.bad_loss = self.bad_loss, None
        self.skipped += bad is not None
        self.skipped_in_a_row = 0 if bad is None else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise LossError(
                f"The loss was not finite for ten steps in a row, up to step {self.step}. Lower --model.lr, "
                f"set --training.precision float32, or look for odd images with 'verisim data check'.",
                bad,
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        loss, parts = self.training_loss(
            batch["image"], self.condition_of(batch.get("label"), batch.get("text"))
        )
        self.log_parts({"loss": loss, **parts})
        return loss.mean() if self.is_finite(loss) else None

    def is_finite(self, loss: Tensor) -> bool:
        """True if the loss is finite, in every process; else the step is skipped and counted: ten in a row stop the run."""
        finite = torch.isfinite(loss).all()
        if dist.is_available() and dist.is_initialized():
            finite = finite.int()  # agreed on: a process that skips a step alone leaves the others waiting
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        if bool(finite):
            return True
        self.bad_loss = loss.detach()
        return False

    def descend(self, loss: Tensor, optimizers: Sequence[Any], clip: float) -> bool:
        """For manual optimisation: step `optimizers` on the mean loss, unless it or a gradient is not finite.

        clip: largest gradient norm of each optimiser's parameters; 0 = no clipping. False: nothing was changed.
        """
        if not self.is_finite(loss):
            return False
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss.mean())
        held = [[p for g in o.param_groups for p in g["params"]] for o in optimizers]
        norms = [nn.utils.clip_grad_norm_(parameters, clip or torch.inf) for parameters in held]
        if not self.is_finite(torch.stack(norms)):
            return False
        for optimizer in optimizers:
            optimizer.step()
        return True

    def log_parts(self, parts: dict[str, Tensor]) -> None:
        """Log the batch means of loss parts."""
        means = {k: v.detach().float().mean() for k, v in parts.items()}
        self.log_dict(means, prog_bar=True, on_step=True, on_epoch=False)

    def configure_model(self) -> None:
        """Cut the network over the processes of a sharded run; Lightning calls this once they have met."""
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        return self.optimizer()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["verisim"] = {
            "step": self.step,
            "elapsed": self.elapsed,
            "seed": self.seed,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "settings": self.settings_to_rebuild(),
        }
        if self.best is not None:
            checkpoint["verisim"]["best"] = vars(self.best)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["verisim"]
        self.step, self.elapsed, self.seed = state["step"], state["elapsed"], state["seed"]
        self.skipped, self.skipped_in_a_row = state.get("skipped", 0), state.get("skipped_in_a_row", 0)
        self.best = Best(**state["best"]) if "best" in state else None
