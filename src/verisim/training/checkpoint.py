"""Checkpoints that survive: safetensors + JSON in one file, hashed, written atomically. No pickle.

The nested dictionary of a Lightning checkpoint is split into its tensors (the file's body) and a JSON
skeleton (the file's header), both covered by one SHA-256 that is verified on loading.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from verisim.data.atomic import atomic_write
from verisim.errors import CheckpointError

FORMAT = "verisim-1"


def save_state(path: Path, state: dict[str, Any], header: dict[str, str] | None = None) -> str:
    """Write a nested state of tensors and JSON values to one hashed file; returns the SHA-256.

    `header`: strings that read_metadata gives back without loading the tensors.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_flatten(state, tensors, ""))
    meta = {**(header or {}), "format": FORMAT, "skeleton": skeleton}
    meta["sha256"] = _digest(meta, tensors)
    atomic_write(path, save(tensors, metadata=meta))
    return meta["sha256"]


def load_state(path: Path) -> dict[str, Any]:
    """Read a file of save_state; CheckpointError if it is missing, truncated, altered or of another kind."""
    meta = read_metadata(path)
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a file written by verisim.")
    try:
        tensors = load(path.read_bytes())
    except SafetensorError as e:
        raise CheckpointError(f"{path} is truncated or damaged ({e}).") from e
    if meta.pop("sha256", "") != _digest(meta, tensors):
        raise CheckpointError(f"{path} is damaged: its SHA-256 does not match its contents.")
    return _unflatten(json.loads(meta["skeleton"]), tensors)


def read_metadata(path: Path) -> dict[str, str]:
    """The string metadata of a safetensors file, read without loading any tensor."""
    try:
        with open(path, "rb") as f:
            head = f.read(8)
            if len(head) < 8:
                raise CheckpointError(f"{path} is truncated: {len(head)} bytes.")
            (length,) = struct.unpack("<Q", head)
            if length > 100_000_000:  # the limit of the safetensors format
                raise CheckpointError(f"{path} is not a safetensors file.")
            return json.loads(f.read(length)).get("__metadata__", {})
    except OSError as e:
        raise CheckpointError(f"Cannot read {path}: {e.strerror}.") from e
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise CheckpointError(f"{path} is truncated or not a safetensors file.") from e


def _digest(meta: dict[str, str], tensors: dict[str, Tensor]) -> str:
    h = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for key in sorted(tensors):
        t = tensors[key]
        h.update(f"{key} {t.dtype} {tuple(t.shape)}".encode())
        h.update(t.contiguous().flatten().view(torch.uint8).numpy().data)
    return h.hexdigest()


def _flatten(node: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Replace tensors by references and tag what JSON lacks: tuples and keys that are no strings."""
    if isinstance(node, Tensor):
        key = name if name not in tensors else f"{name}#{len(tensors)}"
        tensors[key] = node.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(node, dict):
        pairs = [[k, _flatten(v, tensors, f"{name}.{k}" if name else str(k))] for k, v in node.items()]
        if any(not isinstance(k, str | int) for k, _ in pairs):
            raise CheckpointError(f"A checkpoint's keys are strings or integers; {name} has others.")
        return {"dict": pairs}
    if isinstance(node, tuple | list):
        items = [_flatten(v, tensors, f"{name}.{i}") for i, v in enumerate(node)]
        return {"tuple": items} if isinstance(node, tuple) else items
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise CheckpointError(
        f"A checkpoint cannot hold a {type(node).__name__} ({name}): only tensors and JSON."
    )


def _unflatten(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_unflatten(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return tensors[node["tensor"]]
    if "tuple" in node:
        return tuple(_unflatten(v, tensors) for v in node["tuple"])
    return {k: _unflatten(v, tensors) for k, v in node["dict"]}


class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoint reading and writing through save_state and load_state."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_state(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
