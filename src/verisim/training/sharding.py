"""The strategy `fsdp`: Lightning's for torch's FSDP2, on GPUs and on processors, with this project's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType


class Sharded(ModelParallelStrategy):
    """Every process trains on batches of its own and holds one part of the weights; a checkpoint is one whole file."""

    def __init__(self, processes: int) -> None:
        super().__init__(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a whole checkpoint, written by any strategy on any number of processes, into the parts held here."""
        state = self.checkpoint_io.load_checkpoint(Path(self.broadcast(checkpoint_path)))
        whole = StateDictOptions(full_state_dict=True)
        assert self.model is not None
        set_model_state_dict(self.model, state["state_dict"], options=whole)
        for optimizer, held in zip(self.optimizers, state["optimizer_states"]):
            named = FullyShardedDataParallel.rekey_optim_state_dict(
                held, OptimStateKeyType.PARAM_NAME, self.model
            )
            for group, kept in zip(optimizer.param_groups, named["param_groups"]):
                group.update({k: v for k, v in kept.items() if k not in group})  # else torch refuses them
            set_optimizer_state_dict(self.model, optimizer, named, options=whole)
        return state
