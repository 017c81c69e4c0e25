"""How often the pruned model says what the full model says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from glimpse_lightning.metrics.exact_match import exact_match
from glimpse_lightning.metrics.text import answer_scores


class Agreement(Metric):
    """Share of questions that the pruned model answers as the full model does, up to case, spaces and end punctuation.

    Right or wrong does not matter: it is fidelity, not accuracy.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], full: Sequence[str]) -> None:
        """Add questions: the pruned model's answer and the full model's."""
        self.total += sum(answer_scores(predictions, [[answer] for answer in full], exact_match))
        self.count += len(predictions)

    def compute(self) -> Tensor:
        """Share in [0, 1], fp32; 0 before the first question."""
        return (self.total / self.count.clamp(min=1)).float()
