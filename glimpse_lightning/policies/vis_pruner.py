"""VisPruner's keep rule: important tokens, and diverse ones among the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.core.segments import floor_share, rank_in_group
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_fraction, check_positive
from glimpse_lightning.policies.greedy import GroupRows
from glimpse_lightning.policies.thinning import thin


class VisPruner(Budgeted):
    """A share of the budget to the best tokens; the rest is thinned out until it fits the other share (VisPruner).

    arXiv 2412.01818 v3: the rest, best first, is parted into tokens at even and at odd places; the ``step`` even ones
    most similar (cosine of the states at the stage) to an odd one are dropped. The even ones that are left, most
    similar first, and the odd ones after them are the queue of the next round, until the other share is left.

    Departures: similar in states at the stage, where VisPruner compares those in front of the projector; where its code
    raises, as the rest is an odd number of tokens or half of it are fewer than one round drops, all even ones go at
    most; one set per sample unless ``per: item``.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
        important: share of the budget that goes to the best tokens.
        step: tokens dropped per round.
        **keys: arguments of a budget, in place of ``budget``.
    """

    def __init__(
        self, budget: Budget | float | None = None, *, important: float = 0.5, step: int = 8, **keys: Any
    ) -> None:
        super().__init__(budget, **keys)
        check_fraction("important", important)
        check_positive("step", step, " token per round")
        self.important = important
        self.step = step

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        rows = GroupRows.of(scores, tokens, group, budget)
        rank = rows.padding.pad(rank_in_group(scores, group, len(budget)))
        best = floor_share(self.important, rows.budget)
        important = rows.open & (rank < best[:, None])
        diverse = rows.budget - best
        left = thin(rows, rows.open & ~important, diverse, rank, torch.full_like(best, self.step), reorder=True)
        return rows.padding.unpad(important | (left & (diverse > 0)[:, None]))
