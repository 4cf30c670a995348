"""How to train: one frozen dataclass, filled by a recipe and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verisim.errors import VerisimError


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training loop.

    Args:
        batch_size: images per step and device
        accumulate: parts that a batch is cut into, one after the other in memory: the same step in less memory
        max_steps: batches in the whole run; 0 = until the time is over
        max_minutes: time budget of the whole run, over all resumptions; 0 = none
        clock: what max_minutes counts; cpu = processor time of this process, fair on a busy machine
        ema: decay of the moving average of the weights; 0 = off
        select: which weights are kept: those of the last step, or the best on patients that are held out of the
            training split for it (never the test split), by the model's own loss with the averaged weights
        select_share: share of the training patients held out; with select best
        select_steps: steps between looks at them; with select best
        snapshot_steps: steps between snapshots of two power-function averages, from which 'verisim sample
            --ema_length' makes an average of any length after training; 0 = none. Each is two networks large
        precision: bf16 halves memory and is faster on recent CPUs and GPUs
        clip: largest gradient norm; 0 = no clipping (GANs clip on their own)
        compile: backend of torch.compile for networks that are called as a whole, e.g. inductor; empty = none
        channels_last: memory layout; helps CPUs where channels are few; slows wide networks on CPUs, and U-Nets on a GPU
        seed: seed of weights, data order and noise
        checkpoint_minutes: time between checkpoints
        checkpoint_steps: steps between checkpoints; 0 = by time alone
        sample_minutes: time between grids of samples; 0 = only at the end
        log_every: steps between lines of metrics.jsonl
        accelerator: where to train
        devices: processes (GPUs) on this node
        num_nodes: machines
        strategy: auto; ddp: every process holds the whole model; fsdp: each holds one part of it; others of Lightning
    """

    batch_size: int = 64
    accumulate: int = 1
    max_steps: int = 0
    max_minutes: float = 0.0
    clock: Literal["wall", "cpu"] = "wall"
    ema: float = 0.999
    select: Literal["last", "best"] = "last"
    select_share: float = 0.1
    select_steps: int = 100
    snapshot_steps: int = 0
    precision: Literal["float32", "bf16"] = "bf16"
    clip: float = 1.0
    compile: str = ""
    channels_last: bool = False
    seed: int = 0
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int = 0
    sample_minutes: float = 2.0
    log_every: int = 10
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        if self.max_steps <= 0 and self.max_minutes <= 0:
            raise VerisimError(
                "Nothing says when to stop: give --training.max_steps N or --training.max_minutes M."
            )
        for name in ("batch_size", "accumulate", "log_every", "devices", "num_nodes", "select_steps"):
            if getattr(self, name) < 1:
                raise VerisimError(f"training.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.batch_size % self.accumulate:
            raise VerisimError(
                f"training.batch_size is {self.batch_size}, which cannot be cut into training.accumulate = "
                f"{self.accumulate} equal parts. Take a multiple of it."
            )
        if self.snapshot_steps < 0:
            raise VerisimError(
                f"training.snapshot_steps is {self.snapshot_steps}; it must be 0 (none) or more."
            )
        if not 0 < self.select_share < 1:
            raise VerisimError(
                f"training.select_share is {self.select_share:g}; it must lie between 0 and 1, e.g. 0.1."
            )
        if "fsdp" in self.strategy:
            self._check_sharding()
        if not 0 <= self.ema < 1:
            raise VerisimError(
                f"training.ema is {self.ema}; it must be in [0, 1), e.g. 0.999, or 0 for none."
            )

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Where a run with these settings trains here."""
        import torch

        return "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"

    def _check_sharding(self) -> None:
        """VerisimError for what needs whole networks while they train."""
        if self.strategy != "fsdp":
            raise VerisimError(
                f"training.strategy {self.strategy} is not supported; the sharded one is fsdp."
            )
        whole = {"select best": self.select == "best", "channels_last true": self.channels_last}
        whole["snapshot_steps"] = self.snapshot_steps > 0
        for setting in (name for name, asked in whole.items() if asked):
            raise VerisimError(
                f"training.{setting} needs whole networks, which strategy fsdp cuts up. Use --training.strategy ddp, "
                f"or leave it out."
            )
