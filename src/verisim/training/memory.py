"""Counts what a training step keeps in memory; on request without allocating any of it.

Two numbers. `saved`: bytes that the forward pass keeps for the backward pass, each storage once (spec 002, D.6);
they grow with the image. `peak`: most bytes that were alive at once from the start of the forward to the end of
the backward pass, gradients and temporary results included, which also sees what checkpointing computes again.
Both are of tensors: what libraries take for themselves, and gaps between blocks, come on top.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Counted:
    """Bytes of one pass."""

    saved: int  # kept for the backward pass
    peak: int  # most that were alive at once, beside what was there before (weights, images)


class Ledger(TorchDispatchMode):
    """Bytes of all storages that operations made meanwhile and that are still alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._enter(t.untyped_storage())
        return out

    def _enter(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self.known:
            self.known.add(place)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._leave, place, size)

    def _leave(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.live -= size


def with_saved_bytes(forward: Callable[[], Tensor], without: Iterable[Tensor] = ()) -> tuple[Tensor, int]:
    """forward(), and the bytes that it keeps for the backward pass; each storage counts once.

    `without`: tensors that do not count, e.g. weights. Of a checkpointed part its inputs are kept.
    """
    others = {StorageWeakRef(t.untyped_storage()) for t in without}
    saved: dict[StorageWeakRef, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        saved[StorageWeakRef(storage)] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = forward()
    return loss, sum(size for place, size in saved.items() if place not in others)


def count_step(forward: Callable[[], Tensor], without: Iterable[Tensor] = ()) -> Counted:
    """Runs forward() to a scalar and its backward pass; gradients of leaves are left where they are."""
    with Ledger() as ledger:
        loss, saved = with_saved_bytes(forward, without)
        loss.backward()
    return Counted(saved, ledger.peak)


def count_forward(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Most bytes alive at once in forward() when none of the weights needs a gradient."""
    learning = [w for w in weights if w.requires_grad]
    for w in learning:
        w.requires_grad_(False)
    try:
        with Ledger() as ledger:
            forward()
    finally:
        for w in learning:
            w.requires_grad_(True)
    return ledger.peak


@contextmanager
def weightless(model: Module, *tensors: Tensor | None) -> Iterator[tuple[Module, list[Tensor | None]]]:
    """A copy of the model and of tensors that have shapes but no contents; what runs meanwhile allocates nothing.

    Operations take the ways that they would take on the tensors' own device, so counts are those of a real run.
    What asks for a value (`float(t)`, `if t > 0`) cannot run: torch raises DataDependentOutputException.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        hollow = copy.deepcopy(model)
    with mode:
        yield hollow, [None if t is None else mode.from_tensor(t) for t in tensors]
