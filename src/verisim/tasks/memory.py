"""Out of memory, in one sentence: what was asked for, and which settings help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from verisim.devices import memory_asked
from verisim.errors import VerisimError
from verisim.models.base import GenerativeModel


@contextmanager
def memory_explained(model: GenerativeModel, n: int) -> Iterator[None]:
    """Turn a failed allocation while n images are drawn into a VerisimError; other errors pass."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        asked = memory_asked(error)
        if asked is None:
            raise
        raise VerisimError(_sentence(model, n, asked)) from error


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
