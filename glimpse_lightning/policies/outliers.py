"""PruMerge's keep rule: as many tokens as stand out."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.core.segments import rank_in_group, segment_count
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice, check_count
from glimpse_lightning.policies.scale import weights


class Outliers(Policy):
    """Keeps the tokens above ``Q3 + factor * (Q3 - Q1)`` of its group's weights, quartiles interpolated linearly.

    LLaVA-PruMerge (arXiv 2403.15388). With ``stride`` (PruMerge+) also tokens ``0, s, 2s, ...`` in order, except the
    last of the ``n``, where ``s = max(1, floor(floor(n / kept) / 3))``. With ``extra``, one more: the best of the rest,
    which the reducer ``MergeNeighbours`` turns into the weighted sum of all the rest.

    Departures: PruMerge's extra token is a new one after the image; here it takes the place of the best dropped token.
    Its code raises where more than a third stand out, and for some ``n`` other than 576 leaves out one that does, by
    rounding. There is no budget: log the retention.

    Args:
        factor: multiple of the interquartile range.
        stride: whether evenly spread tokens are added.
        extra: whether one more token is kept as a merge target.
        scale: ``"log"``: scores are logarithms of weights (attention scorers); ``"raw"``: weights.
        per: group whose quartiles are taken.
        min_tokens: floor, in tokens, of those that stand out.
    """

    def __init__(
        self,
        factor: float = 1.5,
        stride: bool = False,
        extra: bool = True,
        scale: Literal["log", "raw"] = "log",
        per: Literal["sample", "item"] = "item",
        min_tokens: int = 1,
    ) -> None:
        check_choice("scale", scale, ("log", "raw"))
        check_choice("per", per, ("sample", "item"))
        check_count("min_tokens", min_tokens)
        self.factor = factor
        self.stride = stride
        self.extra = extra
        self.scale = scale
        self.per = per
        self.min_tokens = min_tokens

    @property
    def may_keep_nothing(self) -> bool:
        return self.min_tokens == 0 and not self.extra

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        return self._standing_out(scores, tokens) | self._extra(scores, tokens)

    def merge_targets(self, scores: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        return keep & self._extra(scores, tokens)

    def _extra(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, total = tokens.groups(self.per)
        kept = self._standing_out(scores, tokens)
        if not self.extra:
            return torch.zeros_like(kept)
        rest = torch.where(kept, -torch.inf, scores.float())
        return (rank_in_group(rest, group, len(total)) == 0) & (rest > -torch.inf)

    def _standing_out(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, total = tokens.groups(self.per)
        groups = len(total)
        value, present = weights(scores, self.scale, group, groups), scores > -torch.inf
        fence = self._fence(value, group, groups)[group]
        rank = rank_in_group(scores, group, groups)
        keep = present & ((value > fence) | (rank < self.min_tokens))
        if self.stride:
            kept, size = segment_count(group, groups, keep).clamp(min=1), segment_count(group, groups)
            step = (size // kept // 3).clamp(min=1)[group]
            place = rank_in_group(torch.zeros_like(rank), group, groups)
            keep = keep | (present & (place % step == 0) & (place < size[group] - 1))
        return keep

    def _fence(self, value: Tensor, group: Tensor, groups: int) -> Tensor:
        """``[groups]`` weight above which a token is an outlier."""
        if not len(value):
            return value.new_zeros(groups)
        count = segment_count(group, groups)
        start = count.cumsum(0) - count
        # Ascending within each group, one group after the other.
        ordered = torch.empty_like(value).scatter(0, start[group] + rank_in_group(-value, group, groups), value)

        def quantile(q: float) -> Tensor:
            place = q * (count - 1).clamp(min=0).double()
            low = place.floor().long()
            last = (start + count - 1).clamp(min=0)
            lower, upper = ordered[(start + low).minimum(last)], ordered[(start + low + 1).minimum(last)]
            return lower + (place - low).float() * (upper - lower)

        first, third = quantile(0.25), quantile(0.75)
        return third + self.factor * (third - first)
