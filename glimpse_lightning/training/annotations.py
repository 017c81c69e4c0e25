"""Checks that the training data has the annotations that an objective learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from glimpse_lightning.data.sample import Sample
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.ranks import any_rank


class Annotations:
    """Search for an objective's annotations: in the dataset where that can count them, else in the samples read.

    Args:
        objective: the objective that learns from the annotations.
        dataset: training data. Its method ``annotated(what)``, where there is one, counts the samples with the
            annotations ``what`` (``"answers"`` or ``"boxes"``).

    Raises:
        GlimpseError: where no sample has them.
    """

    def __init__(self, objective: Objective, dataset: Any) -> None:
        self.name = type(objective).__name__
        self.missing = list(objective.needs)
        for what in objective.needs if hasattr(dataset, "annotated") else ():
            found, total = dataset.annotated(what), len(dataset)
            if not found:
                raise GlimpseError(
                    f"Expected `{what}`, which {self.name} learns from, but none of the {total} training samples has "
                    "any. Add them to `data.train`, or train with the KL objective, which needs none."
                )
            if found < total:
                rank_zero_info(f"{found} of {total} training samples have `{what}`, which {self.name} learns from.")
            self.missing.remove(what)

    def see(self, samples: Sequence[Sample]) -> None:
        """Record the annotations of a training batch."""
        self.missing = [what for what in self.missing if not any(getattr(sample, what) for sample in samples)]

    def remarks(self, needs: Sequence[str], device: torch.device) -> list[str]:
        """Remarks on annotations that a training has never met; to be called on all ranks."""
        never = [what for what in needs if not any_rank(what not in self.missing, device)]
        return [f"No training sample had `{what}`, which {self.name} learns from." for what in never]
