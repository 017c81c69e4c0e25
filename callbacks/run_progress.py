"""A progress bar with the figures that matter."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

NAMES = {"hard_retention": "kept"}


class RunProgress(RichProgressBar):
    """Shows loss, KL and the share of tokens kept, under short names.

    Args:
        refresh_rate: batches between updates; 0: no bar.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        shown = {name.removeprefix("train/"): value for name, value in super().get_metrics(trainer, pl_module).items()}
        return {NAMES.get(name, name): value for name, value in shown.items() if name != "v_num"}

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"  # Lightning's says "Epoch 0/-2" where steps, not epochs, are counted
