"""A progress bar with losses, retention and throughput."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console
from rich.progress import TaskID
from typing_extensions import override

from glimpse_lightning.callbacks.results_writer import peak_memory_mb
from glimpse_lightning.callbacks.training_speed import RunningSpeed
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.evaluation.module import EvaluationModule
from glimpse_lightning.evaluation.suite import SuiteData

NARROW, FEW = 110, ("loss", "kept")
"""Columns of a terminal below which the bar shows few figures, and which: it would go on over several lines."""
NAMES = {"hard_retention": "kept"}
PASSES = ("full and pruned", "baselines")
"""Names of a test's passes over its questions, in order."""


class RunProgress(RichProgressBar):
    """Shows loss, KL and the share of tokens kept, under short names; and throughput of this rank.

    In training it counts the steps of the whole run, those before an interruption included, and names the epoch. In a
    test it names the pass or the task. On a narrow terminal it shows loss and kept share alone.

    ``samples/s`` and ``visual/s`` (visual tokens that entered the model) are running means over training batches, the
    time between them included; ``GB`` is the peak memory, of the accelerator where there is one, else of the process.

    Args:
        refresh_rate: batches between updates; 0 switches the bar off.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self._speed = RunningSpeed()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, Batch):
            self._speed.add(batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._speed.pause()
        super().on_validation_start(trainer, pl_module)

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        shown = {name.removeprefix("train/"): value for name, value in super().get_metrics(trainer, pl_module).items()}
        shown = {NAMES.get(name, name): value for name, value in shown.items() if name != "v_num"}
        if self._speed.figures is not None:
            samples, visual = self._speed.figures
            shown["samples/s"], shown["visual/s"] = f"{samples:.2f}", f"{visual:.0f}"
            shown["GB"] = f"{_peak_gb(pl_module.device):.2f}"
        if get_console().width < NARROW:
            return {name: value for name, value in shown.items() if name in FEW}
        return shown

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with one bar, where Lightning starts at 0 in each epoch and shows only a short epoch's end."""
        if self.is_disabled or self.progress is None:
            return
        if self.train_progress_bar_id is None:
            self._initialize_train_progress_bar_id()
        else:
            description = self._get_train_description(trainer.current_epoch)
            self.progress.update(self.train_progress_bar_id, description=description)
        self.refresh()

    @override
    def _initialize_train_progress_bar_id(self) -> None:
        assert self.progress is not None
        self.train_progress_bar_id = self.progress.add_task(
            self._get_train_description(self.trainer.current_epoch),
            total=self.trainer.estimated_stepping_batches,
            completed=self.trainer.global_step,  # those before an interruption took no time now
        )

    @override
    def _update(self, progress_bar_id: TaskID | None, current: int, visible: bool = True, hard: bool = False) -> None:
        if progress_bar_id is not None and progress_bar_id == self.train_progress_bar_id:
            current = self.trainer.global_step
        super()._update(progress_bar_id, current, visible, hard)

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        return f"Training, epoch {current_epoch + 1}{f'/{epochs}' if epochs and epochs > 0 else ''}"

    @property
    @override
    def test_description(self) -> str:
        module, data = self.trainer.lightning_module, self.trainer.datamodule  # type: ignore[attr-defined]
        tasks = [task.name for task in data.tasks] if isinstance(data, SuiteData) else []
        passes = tasks or PASSES[: module.test_passes if isinstance(module, EvaluationModule) else 1]
        which = passes[self._current_eval_dataloader_idx or 0] if len(passes) > 1 else ""
        return f"Testing {which}".strip()


def _peak_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return (peak_memory_mb() or 0.0) / 2**10
