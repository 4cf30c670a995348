"""Cut a model's network over the processes that train it: fully sharded data parallelism (torch's FSDP2).

Each process holds one part of every weight, of its gradient, of the optimiser's state and of the moving
average. The whole weights of a block exist only while it computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from verisim.errors import VerisimError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from verisim.models.base import GenerativeModel


def shard(model: GenerativeModel, mesh: DeviceMesh) -> None:
    """Cut `net`, and its moving average, over the processes of a mesh of one dimension.

    Raises VerisimError for a model that learns weights outside `net`, which would stay whole and apart.
    """
    inside = {id(p) for p in model.net.parameters()}
    outside = [k for k, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside:
        raise VerisimError(
            f"training.strategy fsdp cuts up one network; this model learns others beside it ('{outside[0]}'). Use "
            f"--training.strategy ddp."
        )
    _cut(model.net, mesh)
    if model.ema is not None:
        _cut(model.ema.module, mesh)


def _cut(net: nn.Module, mesh: DeviceMesh) -> None:
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def _blocks(net: nn.Module) -> list[nn.Module]:
    """The parts that a network calls one after the other: its children, and those of its lists."""
    found: list[nn.Module] = []
    for child in net.children():
        lists = isinstance(child, nn.ModuleList | nn.ModuleDict)
        found += _blocks(child) if lists else [child] * any(True for _ in child.parameters())
    return found
