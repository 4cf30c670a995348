"""Out of memory, in one sentence: what was asked for, and which settings help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from verisim.errors import VerisimError
from verisim.models.base import GenerativeModel

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@contextmanager
def memory_explained(model: GenerativeModel, n: int) -> Iterator[None]:
    """Turn a failed allocation while n images are drawn into a VerisimError; other errors pass."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        asked = _asked_for(error)
        if asked is None:
            raise
        raise VerisimError(_sentence(model, n, asked)) from error


def _asked_for(error: Exception) -> str | None:
    """' 20.0 GiB' that an allocation wanted, '' where the error does not say, None for another error."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in text:
        return None
    found = re.search(r"ried to allocate ([\d.]+) (bytes|[KMGT]iB)", text)
    if not found:
        return ""
    size = float(found[1]) * UNITS[found[2]]
    unit = next(u for u in ("TiB", "GiB", "MiB", "KiB", "bytes") if size >= UNITS[u] or u == "bytes")
    return f" ({size / UNITS[unit]:.4g} {unit} more were asked for)"


def _sentence(model: GenerativeModel, n: int, asked: str) -> str:
    shape = "x".join(map(str, model.spec.shape))
    batch = getattr(model.options, "batch", None)
    at_once = min(n, batch or n)
    fewer = f"--batch below {at_once}" if batch else f"-n below {at_once}"
    first = f"{fewer}; " if at_once > 1 else ""  # one image at a time is the least
    return (
        f"Sampling {at_once} image(s) of {shape} at a time needs more memory than there is{asked}. What helps: {first}"
        f"a model of smaller images (--data.size in training); one that denoises fewer places (--model.patch 2, or "
        f"--model.representation haar or latent). Fewer steps do not."
    )
