"""Share of the pruned model's answers that equal the full model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from glimpse_lightning.metrics.exact_match import exact_match
from glimpse_lightning.metrics.running_mean import RunningMean
from glimpse_lightning.metrics.text import answer_scores


class Agreement(RunningMean):
    """Share of questions that the pruned model answers as the full model does, up to case, spaces and end punctuation.

    Wrong answers count like right ones: this is fidelity, not accuracy. Some papers call it loyalty.
    """

    def update(self, predictions: Sequence[str], full: Sequence[str]) -> None:
        """Add questions: the pruned model's answer and the full model's."""
        self.add(torch.tensor(answer_scores(predictions, [[answer] for answer in full], exact_match)))
