"""Parameters and training memory of position regression and of the autoencoder at the source's scale, computed exactly.

The networks are built and run on PyTorch's meta device: shapes without numbers, so a step of hundreds of gigabytes
costs nothing. What is counted is what the forward pass keeps for the backward pass, each storage once, without weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from verisim.data.spec import ImageSpec
from verisim.models.anomaly.dense_autoencoder import DenseNet
from verisim.models.anomaly.position_regression import PositionNet
from verisim.training.estimate import with_saved_bytes

WIDTHS = (1, 2, 4, 8, 16, 32, 64)  # m of source 002
SIDE, PATCH, LATENT = 256, 31, 128
BATCHES = {"B-A": (256, 1), "B-B": (4, 1)}  # patches, and volumes: in practice, and one


def memory_rows(widths: tuple[int, ...] = WIDTHS) -> dict[str, dict[str, Any]]:
    """'B-A m=4' -> parameters, and bytes kept by a step at both batch sizes, of both networks."""
    rows = {}
    for width in widths:
        with torch.device("meta"):
            position = PositionNet(3, 1, PATCH, width, spectral=True)
            auto = DenseNet(ImageSpec((SIDE,) * 3), width, LATENT)
        rows[f"B-A m={width}"] = _row(position, "B-A", PATCH, width)
        rows[f"B-B m={width}"] = _row(auto, "B-B", SIDE, width)
    return rows


def _row(net: nn.Module, system: str, side: int, width: int) -> dict[str, Any]:
    each = {}
    for n in BATCHES[system]:
        x = torch.empty(n, 1, side, side, side, device="meta")
        target = torch.empty(n, 3, device="meta") if system == "B-A" else x
        each[str(n)] = saved_bytes(net, lambda x=x, target=target: (net(x) - target).abs().mean())  # type: ignore[misc]
    return {"width": width, "parameters": sum(p.numel() for p in net.parameters()), "saved_bytes": each}


def saved_bytes(net: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Bytes that loss() keeps for its backward pass, beside the weights of `net`, in training mode."""
    was = net.training
    net.train()
    try:
        return with_saved_bytes(loss, without=[*net.parameters(), *net.buffers()])[1]
    finally:
        net.train(was)
