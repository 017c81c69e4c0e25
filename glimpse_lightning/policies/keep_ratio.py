"""A fixed share of the tokens."""

from __future__ import annotations

from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Per
from glimpse_lightning.policies.budgeted import Budgeted


class KeepRatio(Budgeted):
    """Keeps the best ``floor(ratio * N)`` tokens of each group, but at least ``min_tokens``.

    ``N`` is the number of tokens before any pruning, so that the ratios of several stages are ratios of the same thing.
    Rounding is down, never above the ratio, except that a product short of a whole number by less than 1e-9 counts as
    that number (0.29 * 100 keeps 29).

    Args:
        ratio: share to keep, in [0, 1].
        per: group that it is a share of.
        min_tokens: floor, in tokens.
    """

    def __init__(self, ratio: float, per: Per = "sample", min_tokens: int = 1) -> None:
        super().__init__(ratio, per=per, min_tokens=min_tokens)

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        return self.best(scores, tokens)
