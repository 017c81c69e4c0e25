"""VisionZip's keep rule: the dominant tokens, and evenly spread ones that collect the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.core.segments import floor_share, rank_in_group, segment_count
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_fraction


class DominantContextual(Budgeted):
    """Most of the budget to the best tokens, the others to *targets* at a uniform stride over the rest (VisionZip).

    arXiv 2412.04467: of a budget ``B``, ``C = floor(contextual * B)`` tokens are contextual (30 of 192, 20 of 128, 10
    of 64) and ``B - C`` dominant. Of the ``R`` tokens left, in order, numbers ``0, s, 2s, ...`` are kept as targets,
    ``s = max(1, R // C)``, at most ``C``. Use it with the reducer ``MergeNearest``, which merges the others into the
    targets.

    VisionZip keeps the class token, too, beyond the budget; here it is no visual token.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`;
            VisionZip is ``per: item``.
        contextual: share of the budget.
        **keys: arguments of a budget, in place of ``budget``.
    """

    default_per = "item"

    def __init__(self, budget: Budget | float | None = None, *, contextual: float = 0.15625, **keys: Any) -> None:
        super().__init__(budget, **keys)
        check_fraction("contextual", contextual)
        self.contextual = contextual

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, contextual, best = self._parts(scores, tokens)
        groups, present = len(contextual), scores > -torch.inf
        dominant, rest = present & best, present & ~best
        stride = (segment_count(group, groups, rest) // contextual.clamp(min=1)).clamp(min=1)[group]
        place = rank_in_group(rest.long(), group, groups)  # among the rest, which comes first
        return dominant | (rest & (place % stride == 0) & (place // stride < contextual[group]))

    def merge_targets(self, scores: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        return keep & ~self._parts(scores, tokens)[2]

    def _parts(self, scores: Tensor, tokens: VisualTokens) -> tuple[Tensor, Tensor, Tensor]:
        """``(group [V], contextual [groups], best [V])``: how many are contextual; which may dominate."""
        group, budget = self.budget(tokens)
        contextual = floor_share(self.contextual, budget)
        return group, contextual, rank_in_group(scores, group, len(budget)) < (budget - contextual)[group]
