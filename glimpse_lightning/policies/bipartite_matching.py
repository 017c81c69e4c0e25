"""ToMe's choice of tokens: of each most similar pair one goes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_positive
from glimpse_lightning.policies.greedy import GroupRows
from glimpse_lightning.policies.thinning import thin


class BipartiteMatching(Budgeted):
    """ToMe's bipartite soft matching as a keep rule (arXiv 2210.09461): of the most similar pairs, one token goes.

    Tokens are parted into even and odd places, in order; the even ones most similar (cosine of the states at the stage)
    to an odd one are dropped: in ``rounds`` rounds of equal size, or more where that is above half of the tokens left.
    Scores are not used, but -inf is never kept. With the reducer ``MergeNearest`` dropped tokens are merged.

    Departures: ToMe merges a few pairs in every block inside the vision tower, by keys; here it is done once, at the
    stage, with states.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
        rounds: number of rounds in which tokens go; ToMe has as many as the tower has blocks. With few, all tokens at
            even places go at once, and the tokens left are little better than a uniform stride.
        **keys: arguments of a budget, in place of ``budget``.
    """

    def __init__(self, budget: Budget | float | None = None, *, rounds: int = 24, **keys: Any) -> None:
        super().__init__(budget, **keys)
        check_positive("rounds", rounds)
        self.rounds = rounds

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        rows = GroupRows.of(scores, tokens, group, budget)
        order = torch.arange(rows.open.shape[1], device=group.device).expand_as(rows.open)
        excess = (rows.open.sum(1) - rows.budget).clamp(min=1)
        left = thin(rows, rows.open, rows.budget, order, (excess + self.rounds - 1) // self.rounds)
        return rows.padding.unpad(left & (rows.budget > 0)[:, None])
