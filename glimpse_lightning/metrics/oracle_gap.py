"""The gap between a pruner and the oracle, which knows the evidence."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.metrics.running_mean import RunningMean


class OracleGap(RunningMean):
    """Advantage of the oracle, which keeps the tokens touched by evidence boxes, on the same questions.

    ``accuracy`` is the mean of the oracle's score less the pruner's, ``retention`` the mean of the share of visual
    tokens that the pruner keeps less the oracle's share: both are 0 for a pruner equal to the oracle, and negative for
    a better one.
    """

    higher_is_better = False
    figures = ("accuracy", "retention")

    def update(self, scores: Tensor, oracle_scores: Tensor, kept: Tensor, oracle_kept: Tensor, total: Tensor) -> None:
        """Add questions, ``[S]`` each; those without visual tokens do not count.

        Args:
            scores, oracle_scores: scores of the answers, in [0, 1].
            kept, oracle_kept: numbers of kept visual tokens.
            total: numbers of visual tokens before pruning.
        """
        seen = total > 0
        excess = (kept - oracle_kept)[seen].double() / total[seen].double()
        self.add(torch.stack([(oracle_scores - scores)[seen].double(), excess], dim=1))
