"""A fixed share of the tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice, check_count, check_fraction
from glimpse_lightning.segments import floor_share, rank_in_group
from glimpse_lightning.visual_tokens import VisualTokens


class KeepRatio(Policy):
    """Keeps the best ``floor(ratio * N)`` tokens of each group, but at least ``min_tokens``.

    ``N`` is the number of tokens before any pruning, so that the ratios of several stages are ratios of the same thing.
    Rounding is down, never above the ratio, except that a product short of a whole number by less than 1e-9 counts as
    that number (0.29 * 100 keeps 29).

    Args:
        ratio: share to keep, in [0, 1].
        per: what it is a share of.
        min_tokens: floor, in tokens.
    """

    def __init__(self, ratio: float, per: Literal["sample", "item"] = "sample", min_tokens: int = 1) -> None:
        check_fraction("ratio", ratio)
        check_choice("per", per, ("sample", "item"))
        check_count("min_tokens", min_tokens)
        self.ratio = ratio
        self.per = per
        self.min_tokens = min_tokens

    @property
    def may_keep_nothing(self) -> bool:
        return self.min_tokens == 0 and self.ratio < 1

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, total = tokens.groups(self.per)
        count = floor_share(self.ratio, total).clamp(min=self.min_tokens)
        return (rank_in_group(scores, group, len(total)) < count[group]) & (scores > -torch.inf)
