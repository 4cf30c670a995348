"""Where trained models run: on a GPU if there is one, unless told otherwise."""

from __future__ import annotations

import os

import torch

from verisim.errors import VerisimError

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
