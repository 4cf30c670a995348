"""Tensors by name from files of others: safetensors, or torch files that hold nothing but tensors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from verisim.errors import CheckpointError

TORCH = (".pt", ".pth", ".ckpt", ".bin")
INSIDE = (
    "state_dict",
    "model",
    "model_state_dict",
    "network",
    "net",
    "unet_state_dict",
)  # where trainers put weights
PARALLEL = "module."  # prefix of networks that were trained on several GPUs


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a file on the CPU. CheckpointError for anything else; code in a file is never run."""
    try:
        found = load(path.read_bytes()) if path.suffix == ".safetensors" else _torch(path)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}).") from error
    if all(k.startswith(PARALLEL) for k in found):
        found = {k.removeprefix(PARALLEL): v for k, v in found.items()}
    if not found:
        raise CheckpointError(f"{path} holds no tensors.")
    return found


def _torch(path: Path) -> dict[str, Tensor]:
    if path.suffix not in TORCH:
        raise CheckpointError(f"{path}: weights are read from .safetensors and {', '.join(TORCH)} files.")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, AttributeError, ModuleNotFoundError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds more than tensors; it is a pickle whose code is not run. Write its state_dict() alone, "
            f"where you trust it: safetensors.torch.save_file(net.state_dict(), 'weights.safetensors')."
        ) from error
    except (RuntimeError, EOFError, BadZipFile, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no torch file.") from error
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    return _checked(found, path)


def _checked(found: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, not tensors by name (a state dict).")
    odd = [k for k, v in found.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if odd:
        raise CheckpointError(
            f"{path} holds '{odd[0]}' beside tensors. Weights are looked for at the top or under one of "
            f"{', '.join(INSIDE)}."
        )
    return dict(found)
