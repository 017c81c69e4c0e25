"""How far a pruner is from one that knows where the evidence lies."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.metrics.running_mean import RunningMean


class OracleGap(RunningMean):
    """What the oracle, which keeps the tokens that evidence boxes touch, does better on the same questions.

    ``accuracy`` is the mean of the oracle's score less the pruner's, ``retention`` the mean of the share of visual
    tokens that the pruner keeps less the oracle's share: both are 0 for a pruner that is as good as the oracle, and may
    be negative for a better one.
    """

    higher_is_better = False
    figures = ("accuracy", "retention")

    def update(self, scores: Tensor, oracle_scores: Tensor, kept: Tensor, oracle_kept: Tensor, total: Tensor) -> None:
        """Add questions, ``[S]`` each; those without visual tokens do not count.

        Args:
            scores, oracle_scores: of the answers, in [0, 1].
            kept, oracle_kept: visual tokens kept.
            total: visual tokens there are.
        """
        seen = total > 0
        excess = (kept - oracle_kept)[seen].double() / total[seen].double()
        self.add(torch.stack([(oracle_scores - scores)[seen].double(), excess], dim=1))
