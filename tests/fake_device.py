"""A device that is not there: it computes on the CPU, and refuses to mix with it as a GPU would.

Models whose tensors live on it show on any machine where they forget to move something.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device(
    "lazy", 0
)  # a device type without a Python module or kernels of its own in a usual PyTorch

CROSSING = ("_to_copy", "copy_")  # what may take tensors of both devices
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")  # a GPU's tensor takes indices on the CPU


class There(Tensor):
    """A tensor that says it is on DEVICE and holds its values on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=held.requires_grad,
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def fake_device() -> Iterator[None]:
    """Within it tensors can be made on, and moved to, DEVICE."""
    autocast = torch.autocast

    def known_autocast(kind: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu" if kind == DEVICE.type else kind, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, _Makers(), _Operations():
        patch.setattr(torch, "autocast", known_autocast)
        yield


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Makers(TorchFunctionMode):
    """What makes tensors without asking a dispatcher: torch.tensor, torch.as_tensor, and lists as indices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            where = kwargs["device"]
            if any(isinstance(a, Tensor) for a in args):
                return args[0].to(where)
            return func(*args, **{**kwargs, "device": "cpu"}).to(where)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], tuple):
            index = tuple(torch.tensor(i, dtype=torch.long) if isinstance(i, list) else i for i in args[1])
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given, name = tree_leaves((args, kwargs)), func.overloadpacket.__name__
    there = any(isinstance(a, There) for a in given)
    if there and name not in CROSSING:
        _refuse_mixture(func, given if name not in INDEXING else [])
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if asked is not None:
        there, kwargs = asked.type == DEVICE.type, {**kwargs, "device": torch.device("cpu")}
    if there and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a generator of {DEVICE} for {func}, got one of the CPU")
    known = {id(a.held): a for a in given if isinstance(a, There)}
    args, kwargs = tree_map(lambda a: a.held if isinstance(a, There) else a, (args, kwargs))
    found = func(*args, **kwargs)

    def wrapped(t: Any) -> Any:
        return known[id(t)] if id(t) in known else There(t) if isinstance(t, Tensor) else t

    return tree_map(wrapped, found) if there else found


def _refuse_mixture(func: Any, given: list[Any]) -> None:
    """RuntimeError for tensors on the CPU, unless they are single numbers."""
    for a in given:
        if isinstance(a, Tensor) and not isinstance(a, There) and a.ndim > 0:
            raise RuntimeError(f"Expected all tensors to be on the same device for {func}: cpu and {DEVICE}")
