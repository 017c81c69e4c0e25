"""Interface between a data module and the module that reads its batches."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.raw_batch import RawBatch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.runtime.errors import GlimpseError, RefusedSamplesError
from glimpse_lightning.runtime.ranks import gathered


class BatchReader(LightningModule):
    """A module that gets rendered samples from a data module's workers and runs its processor on them.

    Attributes:
        skipped: one message for each sample that was left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skipped: list[str] = []

    def collate(self, samples: list[Sample]) -> Batch:
        """Samples through the model's processor.

        Raises:
            RefusedSamplesError: if the processor refuses samples; the error names all of them.
        """
        raise NotImplementedError

    @property
    def repeats(self) -> int:
        """Number of consecutive training steps that use each batch."""
        return 1

    def test_loaders(self, loader: Any) -> Sequence[Any]:
        """Loaders of a test's passes over the batches of ``loader``."""
        return [loader]

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Samples through the processor; refused samples are left out if the dataset's ``on_error`` is ``skip``."""
        if isinstance(batch, Batch):
            return batch
        raw = batch if isinstance(batch, RawBatch) else RawBatch(list(batch), [1.0] * len(batch))
        if raw.error is not None:
            raise GlimpseError(raw.error)
        try:
            collated = self.collate(raw.samples)
        except RefusedSamplesError as error:
            if raw.on_error != "skip":
                raise
            raw = raw.without(error.reasons)
            collated = self.collate(raw.samples)
        for message in raw.skipped:
            if message not in self.skipped:
                self.skipped.append(message)
                warnings.warn(f"Skipped a bad sample ({len(self.skipped)} so far): {message}", stacklevel=2)
        collated.weight = torch.tensor(raw.weight)
        return collated

    @override
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        # A new batch: the old one may be shared by several models.
        return replace(
            batch,
            inputs={name: value.to(device) for name, value in batch.inputs.items()},
            prompt=None if batch.prompt is None else batch.prompt.to(device),
            **{name: getattr(batch, name).to(device) for name in ("answer_ids", "answer_mask", "key", "weight")},
        )

    def share_skipped(self) -> None:
        """Share the messages about skipped samples among all ranks; called on all ranks."""
        self.skipped = list(dict.fromkeys(gathered(self.skipped)))


class AnsweredBefore(ABC):
    """A callback that returns the questions that a run had answered before it was stopped."""

    @abstractmethod
    def answered(self, trainer: Trainer) -> set[str]:
        """Ids of the answered questions; called on all ranks."""
