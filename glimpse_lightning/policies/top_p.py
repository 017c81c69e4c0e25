"""As many tokens as it takes to hold a share of the probability."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.core.segments import cumsum_before, rank_in_group, segment_max, segment_sum
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice, check_count, check_fraction


class TopP(Policy):
    """Keeps the fewest best tokens whose probability reaches ``p``; probability = softmax of the scores in the group.

    The token that crosses ``p`` is kept. Meant for log-probabilities and logits.

    Args:
        p: probability to hold, in [0, 1].
        per: group that the softmax is taken over.
        min_tokens: floor, in tokens.
    """

    def __init__(self, p: float, per: Literal["sample", "item"] = "sample", min_tokens: int = 1) -> None:
        check_fraction("p", p)
        check_choice("per", per, ("sample", "item"))
        check_count("min_tokens", min_tokens)
        self.p = p
        self.per = per
        self.min_tokens = min_tokens

    @property
    def may_keep_nothing(self) -> bool:
        return self.p == 0 and self.min_tokens == 0

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, total = tokens.groups(self.per)
        rank = rank_in_group(scores, group, len(total))
        scores = torch.where(scores.isnan(), -torch.inf, scores.float())
        # Probabilities up to their common factor, as integers (in units of 2^-28 of the group's largest, at least 1):
        # exact sums on every device, whatever else is in the batch, and p = 1 keeps every finite score.
        weight = ((scores - segment_max(scores, group, len(total))[group]).exp().double() * 2**28).ceil()
        weight = torch.where(scores > -torch.inf, weight.clamp(min=1), 0).long()  # far below the largest, exp is 0
        reach = self.p * segment_sum(weight, group, len(total)).double()
        keep = (cumsum_before(weight, group, len(total), rank) < reach[group]) | (rank < self.min_tokens)
        return keep & (scores > -torch.inf)
