"""Batches of samples as the workers of a data module return them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from glimpse_lightning.data.sample import BLANK, Sample
from glimpse_lightning.data.tables.rows import OnError


@dataclass
class RawBatch:
    """Rendered samples from the workers, before the processor, which runs in the module.

    Attributes:
        samples: usable samples of the batch.
        weight: weight of each sample: 1.0, or 0.0 for a sample that only pads.
        skipped: messages about samples that were left out.
        error: message about a sample that may not be left out; ``None``: there is no such sample.
        on_error: treatment of samples that the processor refuses: ``raise`` or ``skip``.
    """

    samples: list[Sample]
    weight: list[float]
    skipped: list[str] = field(default_factory=list)
    error: str | None = None
    on_error: OnError = "raise"

    def without(self, reasons: Mapping[int, str]) -> RawBatch:
        """The same batch without the samples whose places are keys of ``reasons``. If no sample is left, the batch is a
        blank sample of weight 0, because all ranks have to take the same number of steps.
        """
        good = [index for index in range(len(self.samples)) if index not in reasons]
        return replace(
            self,
            samples=[self.samples[index] for index in good] or [BLANK],
            weight=[self.weight[index] for index in good] or [0.0],
            skipped=self.skipped + [reason for index, reason in reasons.items() if self.weight[index]],
        )
