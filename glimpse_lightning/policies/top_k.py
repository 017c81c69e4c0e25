"""A fixed number of tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice, check_count
from glimpse_lightning.segments import rank_in_group
from glimpse_lightning.visual_tokens import VisualTokens


class TopK(Policy):
    """Keeps the ``count`` best tokens of each group, or all of them where there are fewer.

    Args:
        count: tokens to keep.
        per: what they are counted over.
    """

    def __init__(self, count: int, per: Literal["sample", "item"] = "sample") -> None:
        check_count("count", count)
        check_choice("per", per, ("sample", "item"))
        self.count = count
        self.per = per

    @property
    def may_keep_nothing(self) -> bool:
        return self.count == 0

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, total = tokens.groups(self.per)
        return (rank_in_group(scores, group, len(total)) < self.count) & (scores > -torch.inf)
