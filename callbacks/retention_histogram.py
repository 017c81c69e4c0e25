"""Histograms of the shares of visual tokens that questions keep."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from glimpse_lightning.evaluation.records import by_family, retention

BINS = 50


class RetentionHistogram(Callback):
    """Writes histograms of retention to TensorBoard after validation and test, over all and per question family."""

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "val")

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        summary = getattr(module, "summary", None)
        if summary is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        groups = {"all": summary.records, **by_family(summary.records)}
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                continue
            for name, records in groups.items():
                shares = [share for share in map(retention, records) if share is not None]
                if shares:
                    logger.experiment.add_histogram(
                        f"{stage}_retention/{name}", torch.tensor(shares), trainer.global_step, bins=BINS
                    )
