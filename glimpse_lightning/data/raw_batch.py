"""What the workers of a data module hand over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from glimpse_lightning.data.sample import BLANK, Sample
from glimpse_lightning.data.tables.rows import OnError


@dataclass
class RawBatch:
    """What the workers hand over: rendered samples, not yet through the processor (the module does that).

    Attributes:
        samples: of the batch.
        weight: 1.0 each, or 0.0 for one that only pads and counts nowhere.
        skipped: what was wrong with samples that were left out.
        error: what was wrong with a sample that may not be left out.
        on_error: what becomes of samples that the processor refuses: ``raise`` or ``skip``.
    """

    samples: list[Sample]
    weight: list[float]
    skipped: list[str] = field(default_factory=list)
    error: str | None = None
    on_error: OnError = "raise"

    def without(self, reasons: Mapping[int, str]) -> RawBatch:
        """The same batch less the samples that ``reasons`` names by their place; a blank one, which counts nowhere,
        where none is left: ranks have to take as many steps as each other.
        """
        good = [index for index in range(len(self.samples)) if index not in reasons]
        return replace(
            self,
            samples=[self.samples[index] for index in good] or [BLANK],
            weight=[self.weight[index] for index in good] or [0.0],
            skipped=self.skipped + [reason for index, reason in reasons.items() if self.weight[index]],
        )
