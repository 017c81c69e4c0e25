"""Strategies for the Trainer."""

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
        save_distributed_checkpoint: whether each rank writes its shard. A checkpoint is then a folder, which only a
            sharded run can read. Otherwise rank 0 writes one file, from which runs of any number of processes resume.
        process_group_backend: ``nccl`` or ``gloo``; ``None``: the one that fits the device.
        timeout: time after which a collective operation fails.
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
        """Load as Lightning does, and raise for weights in a file that the model lacks, which Lightning skips."""
        check = getattr(self.lightning_module, "check_state", None)
        if check is not None and Path(checkpoint_path).is_file():
            check(torch.load(checkpoint_path, "cpu", mmap=True, weights_only=weights_only)["state_dict"])
        return super().load_checkpoint(checkpoint_path, weights_only)
