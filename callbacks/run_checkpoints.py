"""Checkpoints that a killed run resumes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from glimpse_lightning.run_folder import remove, replacing, saved_checkpoints

TERMINATED = 128 + 15
"""Exit status of a process that SIGTERM has ended."""


class RunCheckpoints(Checkpoint):
    """Saves ``checkpoints/step=N.ckpt`` every so many steps, at the end and on SIGTERM, each whole or not at all.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: how many of the newest stay: more than one, so that a damaged one has a predecessor.
    """

    def __init__(self, every_n_steps: int = 50, keep: int = 2) -> None:
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._saved = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self._saved + self.every_n_steps:
            self._save(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._saved:
            self._save(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """SIGTERM (pre-emption): Lightning stops between two batches, so what is saved is a state to go on from."""
        if isinstance(exception, SIGTERMException) and trainer.training:
            if trainer.global_step > self._saved >= 0:
                self._save(trainer)
            exception.code = TERMINATED  # Lightning's is that of success
            rank_zero_info("Stopped by SIGTERM and saved; the same command goes on from here.")

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        if getattr(trainer, "fast_dev_run", False):
            return
        folder = Path(trainer.default_root_dir) / "checkpoints"
        path = folder / f"step={trainer.global_step:06d}.ckpt"
        if trainer.world_size == 1:
            with replacing(path) as draft:
                trainer.save_checkpoint(draft)
        else:  # all ranks write under one name; rank 0 then gives the whole thing its own
            draft = path.with_name(f".{path.name}.draft")
            trainer.save_checkpoint(draft)
            if trainer.is_global_zero:
                draft.rename(path)
            trainer.strategy.barrier()
        if trainer.is_global_zero:
            for old in saved_checkpoints(folder)[: -self.keep]:
                remove(old)
