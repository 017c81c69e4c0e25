"""Throughput of a training, as curves."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from glimpse_lightning.data.batch import Batch

SMOOTHING = 0.9
"""Share of the past in the running mean of a batch's figures."""


class RunningSpeed:
    """Running means over training batches, the time between them included."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds = self._samples = self._visual = 0.0

    def pause(self) -> None:
        """Leave out the time until the next batch ends."""
        self._last = None

    def add(self, batch: Batch) -> None:
        """Count a batch that has just ended."""
        now = time.monotonic()
        if self._last is not None:
            self._seconds = SMOOTHING * self._seconds + now - self._last
            self._samples = SMOOTHING * self._samples + len(batch.samples)
            self._visual = SMOOTHING * self._visual + batch.visual_tokens
        self._last = now

    @property
    def figures(self) -> tuple[float, float] | None:
        """Samples and visual tokens per second; ``None`` before the second batch."""
        return (self._samples / self._seconds, self._visual / self._seconds) if self._seconds else None


class TrainingSpeed(Callback):
    """Logs ``train/samples_per_second`` and ``train/visual_tokens_per_second`` of the first rank.

    Both are running means over training batches, loading and logging included, validation left out.
    """

    def __init__(self) -> None:
        self._speed = RunningSpeed()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, Batch):
            self._speed.add(batch)
        if self._speed.figures is not None:
            names = ("train/samples_per_second", "train/visual_tokens_per_second")
            pl_module.log_dict(dict(zip(names, self._speed.figures, strict=True)), batch_size=1, rank_zero_only=True)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._speed.pause()
