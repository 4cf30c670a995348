"""What a training step of a model takes: parameters, bytes, seconds (spec 002, section P)."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from verisim.errors import VerisimError
from verisim.models.base import GenerativeModel
from verisim.training.memory import Counted, count_forward, count_step, weightless

MOMENTS = 2  # of Adam
MOST = 2000  # times the batch that a step may keep; the largest networks of the catalogue keep 1300
NOT_COUNTABLE = (DataDependentOutputException, DynamicOutputShapeException)


@dataclass(frozen=True)
class Resources:
    """Needs of one training step; bytes are of tensors, in the precision named."""

    shape: tuple[int, ...]  # (B, C, *S) of the batch
    precision: str
    parameters: int
    learning: int  # of them, those that are trained (the rest is a frozen first stage)
    saved_bytes: int  # activations that the forward pass keeps for the backward pass
    step_bytes: int  # most alive at once in forward and backward pass, gradients included
    forward_bytes: int  # most alive at once in the same forward pass without gradients
    training_bytes: int  # weights, Adam's moments, moving average and step_bytes
    allocated: bool  # False: counted on tensors without contents
    device: str  # where the rest was measured
    seconds: float | None = None  # forward and backward pass; None = not measured
    gpu_bytes: int | None = None  # most that CUDA's allocator held at once in a step, weights included
    gpu_reserved_bytes: int | None = None  # most that it had reserved

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    model: GenerativeModel,
    x: Tensor,  # (1, C, *S) in [-1, 1]: the model is prepared with it
    batch: int,  # images per step
    *,
    classes: int = 0,  # labels are 0 where there are classes
    texts: Sequence[str] | None = None,  # at least `batch` reports, of a model that reads them
    precision: str = "float32",  # or bf16
    ema: bool = False,  # is a moving average kept?
    device: str = "cpu",  # where to measure seconds, and bytes if it is cuda
    timed: int = 1,  # steps to time after a first one that is not; 0 = none
) -> Resources:
    """Count a step of the model's `trial_loss` and, where memory allows, run and time it."""
    if texts is not None:
        model.learn_texts(texts)
    model.prepare(x)
    x = x.expand(batch, *x.shape[1:])
    label = torch.zeros(batch, dtype=torch.long) if classes else None
    if texts is not None:
        label = model.condition_of(label, texts[:batch])
    counted, forward, allocated = _count(model, x, label, precision)
    parameters = sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    training = weights + 4 * learning * (MOMENTS + ema) + counted.peak
    found: dict[str, Any] = {}
    if timed and training < free_bytes(device):
        found = _run(model, x, label, precision, device, timed)
    return Resources(
        tuple(x.shape), precision, parameters, learning, counted.saved, counted.peak, forward, training,
        allocated, device_name(device), **found,
    )  # fmt: skip


def _count(
    model: GenerativeModel, x: Tensor, label: Tensor | None, precision: str
) -> tuple[Counted, int, bool]:
    """Of a copy without contents if the model's loss asks for no value; else by running it."""
    try:
        with weightless(model, x, label) as (hollow, (images, labels)):
            assert images is not None
            return *_passes(hollow, images.contiguous(), labels, precision), False
    except NOT_COUNTABLE:
        pass
    if x.numel() * 4 * MOST > free_bytes("cpu"):
        raise VerisimError(
            f"The loss of {type(model).__name__} depends on values, so its memory can be counted only by running "
            f"it, and a batch of {tuple(x.shape)} will not fit here. Give a smaller --data.size."
        )
    found = (*_passes(model, x.contiguous(), label, precision), True)
    model.zero_grad()
    return found


def _passes(model: GenerativeModel, x: Tensor, label: Tensor | None, precision: str) -> tuple[Counted, int]:
    def loss() -> Tensor:
        with _autocast("cpu", precision):
            return model.trial_loss(x, label)

    forward = count_forward(loss, model.parameters())
    return count_step(loss, without=model.parameters()), forward


def _run(
    model: GenerativeModel, x: Tensor, label: Tensor | None, precision: str, device: str, timed: int
) -> dict[str, Any]:
    """Seconds of a step (the first one, in which kernels are chosen, is not counted) and CUDA's own count."""
    gpu = device == "cuda"
    model.to(device)
    x, label = x.contiguous().to(device), None if label is None else label.to(device)
    seconds = []
    for k in range(timed + 1):
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        begin = time.perf_counter()
        model.zero_grad()
        with _autocast(device, precision):
            loss = model.trial_loss(x, label)
        loss.backward()
        if gpu:
            torch.cuda.synchronize()
        if k:
            seconds.append(time.perf_counter() - begin)
    found: dict[str, Any] = {"seconds": statistics.median(seconds)}
    if gpu:
        found["gpu_bytes"] = torch.cuda.max_memory_allocated()
        found["gpu_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return found


def _autocast(device: str, precision: str) -> Any:
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def device_name(device: str) -> str:
    """'CPU', or what the GPU is called."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def free_bytes(device: str) -> int:
    """Memory that is free on the device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    with contextlib.suppress(OSError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return 8 << 30
