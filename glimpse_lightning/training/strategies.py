"""Strategies of ours for the Trainer."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override


class FSDP2(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` with all ranks in one data-parallel group.

    (Its own defaults shard over nodes only, that is, nothing on one node.)

    Args:
        save_distributed_checkpoint: whether each rank writes its shard, so that a checkpoint is a folder, which only
            a sharded run can read; otherwise rank 0 writes one file that runs of any number of processes resume from.
        process_group_backend: ``nccl`` or ``gloo``; ``None``: what fits the device.
        timeout: of a collective operation.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    @override
    def load_checkpoint(self, checkpoint_path: Path | str, weights_only: bool | None = None) -> dict[str, Any]:
        """As Lightning does; but of one file it would skip in silence what the model does not know."""
        check = getattr(self.lightning_module, "check_state", None)
        if check is not None and Path(checkpoint_path).is_file():
            check(torch.load(checkpoint_path, "cpu", mmap=True, weights_only=weights_only)["state_dict"])
        return super().load_checkpoint(checkpoint_path, weights_only)
