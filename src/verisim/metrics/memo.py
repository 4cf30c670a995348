"""Measurements on disk, under a hash of all they depend on: an evaluation that was killed goes on.

The hash covers images, settings, feature networks and the code of verisim.metrics itself, so that a
number of older code is never taken for one of today's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from verisim.data.atomic import atomic_write
from verisim.data.spec import Images

Measured = tuple[dict, dict[str, Tensor]]  # numbers for JSON, and tensors (a judge's weights)


class Memo:
    """A folder of measurements; without a folder everything is measured anew."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def fetch(self, parts: list[Any], measure: Callable[[], Measured]) -> Measured:
        """What measure() gave for the same parts (texts, numbers, dataclasses, Images), or gives now."""
        if self.folder is None:
            return measure()
        path = self.folder / f"{digest([code_digest(), *parts])[:32]}.safetensors"
        found = _read(path)
        if found is None:
            found = measure()
            tensors = {k: v.detach().cpu().contiguous() for k, v in found[1].items()}
            atomic_write(path, save(tensors, metadata={"numbers": json.dumps(found[0])}))
        return found


def _read(path: Path) -> Measured | None:
    """A stored measurement; None if it is absent or damaged (it is then measured again)."""
    try:
        with safe_open(str(path), "pt") as f:
            return json.loads((f.metadata() or {})["numbers"]), {k: f.get_tensor(k) for k in f.keys()}
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
        return None


def digest(parts: list[Any]) -> str:
    """SHA-256 over parts in order; images count with pixels, range, labels, masks, texts and patients."""
    h = hashlib.sha256()
    for part in parts:
        if isinstance(part, Images):
            h.update(f"{part.spec} {part.patients} {tuple(part.pixels.shape)}".encode())
            h.update(part.pixels.contiguous().numpy().data)
            h.update(b"" if part.labels is None else part.labels.contiguous().numpy().data)
            if part.segmentation is not None:
                h.update(b"mask")
                h.update(part.segmentation.contiguous().numpy().data)
            if part.texts is not None:
                h.update(repr(part.texts).encode())
        else:
            h.update(repr(part).encode())
        h.update(b"|")
    return h.hexdigest()


@cache
def code_digest() -> str:
    """SHA-256 over the source files of verisim.metrics."""
    root = Path(__file__).parent
    return digest([(p.relative_to(root).as_posix(), p.read_bytes()) for p in sorted(root.rglob("*.py"))])
