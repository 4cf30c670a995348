"""Where trained models run: on a GPU if there is one, unless told otherwise; and what to say when its memory is full."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from verisim.errors import VerisimError

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
VARIABLE = "VERISIM_DEVICE"  # auto, cpu, cuda or cuda:K, for everything that loads a model


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; auto = that of VERISIM_DEVICE, else a GPU if there is one, else the CPU.

    VerisimError for one that PyTorch does not know or this machine does not have.
    """
    asked = os.environ.get(VARIABLE, "auto") if name == "auto" else name
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise VerisimError(
            f"There is no device '{asked}'. Give auto, cpu, cuda, or cuda:1 for the second GPU."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise VerisimError(
            f"Device '{asked}' asked for, and PyTorch {torch.__version__} sees {torch.cuda.device_count()} GPUs here. "
            f"Give --device cpu, or install a PyTorch for this GPU (see pytorch.org)."
        )
    return device


def use_device(name: str) -> None:
    """Make this the device of all models that this process and those it starts load. VerisimError as above."""
    if name != "auto":
        os.environ[VARIABLE] = str(choose_device(name))


@contextmanager
def lent(net: nn.Module) -> Iterator[torch.device]:
    """Within, `net` is on the chosen device, which is given; after it where it was before.

    For judges and feature networks, whose images and results stay on the CPU.
    """
    first = next(chain(net.parameters(), net.buffers()), None)
    device = choose_device()
    net.to(device)
    try:
        yield device
    finally:
        if first is not None:
            net.to(first.device)


def memory_asked(error: Exception) -> str | None:
    """' (20 GiB more were asked for)' of a failed allocation, '' where it does not say, None for another error."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in text:
        return None
    found = re.search(r"ried to allocate ([\d.]+) (bytes|[KMGT]iB)", text)
    if not found:
        return ""
    size = float(found[1]) * UNITS[found[2]]
    unit = next(u for u in ("TiB", "GiB", "MiB", "KiB", "bytes") if size >= UNITS[u] or u == "bytes")
    return f" ({size / UNITS[unit]:.4g} {unit} more were asked for)"
