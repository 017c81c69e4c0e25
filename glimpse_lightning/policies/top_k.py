"""A fixed number of tokens, or as many as a FLOPs target allows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.segments import rank_in_group
from glimpse_lightning.visual_tokens import VisualTokens


class TopK(Budget, Policy):
    """Keeps the ``count`` best tokens of each group, or all of them where there are fewer.

    Args:
        count: tokens to keep.
        per: what they are counted over.
        flops: in place of ``count``: as many as this share of the unpruned prefill's FLOPs allows, at least one; see
            :func:`~glimpse_lightning.policies.budget.tokens_for_flops`.
    """

    def __init__(
        self, count: int | None = None, per: Literal["sample", "item"] = "sample", flops: float | None = None
    ) -> None:
        super().__init__(None, count, per, 1 if count is None else 0, flops)

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        return (rank_in_group(scores, group, len(budget)) < budget[group]) & (scores > -torch.inf)
