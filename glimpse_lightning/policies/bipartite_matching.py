"""ToMe's choice of tokens: of each most similar pair one goes."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.greedy import Rows
from glimpse_lightning.policies.thinning import thin
from glimpse_lightning.visual_tokens import VisualTokens


class BipartiteMatching(Budget, Policy):
    """ToMe's bipartite soft matching as a keep rule (arXiv 2210.09461): of the most similar pairs, one token goes.

    Tokens are parted into even and odd places, in order; the even ones most similar (cosine of the states at the stage)
    to an odd one are dropped, in as many rounds as the budget needs, since a round drops half at most. Scores are not
    looked at, except that -inf is never kept. With the reducer ``MergeNearest`` dropped tokens are merged.

    Departures: ToMe merges a few pairs in every block inside the vision tower, by keys; here it is done once, at the
    stage, with states. Arguments: see :class:`~glimpse_lightning.policies.budget.Budget`.
    """

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        rows = Rows.of(scores, tokens, group, budget)
        order = torch.arange(rows.open.shape[1], device=group.device).expand_as(rows.open)
        left = thin(rows, rows.open, rows.budget, order, None)
        return rows.padding.unpad(left & (rows.budget > 0)[:, None])
