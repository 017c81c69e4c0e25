"""Checkpoints from which a killed run resumes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from glimpse_lightning.runtime.ranks import any_rank
from glimpse_lightning.runtime.run_folder import saved_checkpoints
from glimpse_lightning.runtime.whole_files import put, remove, replacing

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
"""Signals that stop a fit; its exit status is then 128 + the signal's number, as of a process that a signal ended."""


class RunCheckpoints(Checkpoint):
    """Saves ``checkpoints/step=N.ckpt`` every ``every_n_steps`` steps, at the end, on SIGTERM and on Ctrl-C, each whole
    or not at all.

    SIGTERM (pre-emption) and Ctrl-C only set a flag. After the next optimizer step the ranks agree whether one of them
    has it set, save, and stop. In the middle of a step they would deadlock. A second Ctrl-C stops at once. Other
    commands have no step to wait for, and SIGTERM ends them at once.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: number of newest checkpoints to keep: more than one, so that a damaged one has a predecessor.
    """

    def __init__(self, every_n_steps: int = 50, keep: int = 2) -> None:
        self.every_n_steps = every_n_steps
        self.keep = keep
        self._saved = -1
        self._step = -1
        self._asked: signal.Signals | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = self._step = trainer.global_step
        self._asked = None
        # Replaces Lightning's handler, which communicates with the other ranks at once. Lightning restores the handlers
        # from before when the fit ends.
        _handle(self._note, signal.SIGTERM, signal.SIGINT)

    def _note(self, number: int, *_: Any) -> None:
        if number == signal.SIGINT and self._asked == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = signal.Signals(number)
        if number == signal.SIGINT:
            print("\nStopping once this step is done and saved. Ctrl-C again stops at once.", file=sys.stderr)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _end_at_once(trainer)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _end_at_once(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        stop = stepped and any_rank(self._asked is not None, pl_module.device)
        if trainer.global_step >= self._saved + self.every_n_steps or stop:
            self._save(trainer)
        if stop:  # Lightning itself stops, on all ranks, once the figures of this step are logged
            trainer._signal_connector.received_sigterm = True

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._saved:
            self._save(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report the stop and its checkpoint."""
        if isinstance(exception, SIGTERMException) and self._saved >= 0:
            asked = self._asked or signal.SIGTERM  # the signal may have reached another rank only
            exception.code = 128 + asked  # Lightning's own code is 0, as for success
            rank_zero_info(f"Stopped by {NAMES[asked]} and saved; the same command goes on from here.")
        elif isinstance(exception, KeyboardInterrupt) and (trainer.testing or trainer.validating):
            goes_on = getattr(pl_module, "resumable", False)
            rank_zero_info(
                f"Interrupted: {trainer.default_root_dir} has no results yet; the same command "
                f"{'goes on from there' if goes_on else 'starts again in that folder'}."
            )

    def _save(self, trainer: Trainer) -> None:
        self._saved = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir) / "checkpoints"
        path = folder / f"step={trainer.global_step:06d}.ckpt"
        if trainer.world_size == 1:
            with replacing(path) as draft:
                trainer.save_checkpoint(draft)
        else:
            self._save_together(trainer, path)
        if trainer.is_global_zero:
            for old in saved_checkpoints(folder)[: -self.keep]:
                remove(old)

    def _save_together(self, trainer: Trainer, path: Path) -> None:
        """Let all ranks write to one draft; the first then renames the complete checkpoint."""
        if trainer.is_global_zero:
            for left in path.parent.glob(".*.draft*"):  # of a run that was killed while it wrote
                remove(left)
        trainer.strategy.barrier()
        draft = path.with_name(f".{path.name}.draft")
        trainer.save_checkpoint(draft)  # waits for all ranks
        if trainer.is_global_zero:
            put(draft, path)
        trainer.strategy.barrier()


def _handle(handler: Callable[..., Any], *numbers: signal.Signals) -> None:
    """Set a signal handler, where this thread may."""
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, handler)


def _end_at_once(trainer: Trainer) -> None:
    """Have SIGTERM end this process, and those that it has launched; Lightning's handler waits for a training step."""

    def end(number: int, *_: Any) -> None:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    _handle(end, signal.SIGTERM)
