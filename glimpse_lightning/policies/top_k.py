"""A fixed number of tokens, or as many as a FLOPs target allows."""

from __future__ import annotations

from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Per
from glimpse_lightning.policies.budgeted import Budgeted


class TopK(Budgeted):
    """Keeps the ``count`` best tokens of each group, or all of them where there are fewer.

    Args:
        count: number of tokens to keep.
        per: group that the tokens are counted over.
        flops: in place of ``count``: as many as this share of the unpruned prefill's FLOPs allows, at least one; see
            :func:`~glimpse_lightning.policies.budget.tokens_for_flops`.

    Raises:
        ValueError: where both are given, or neither, or a value is out of range.
    """

    def __init__(self, count: int | None = None, per: Per = "sample", flops: float | None = None) -> None:
        if (count is None) == (flops is None):
            raise ValueError(
                f"Expected either `count` or `flops`, but got count={count}, flops={flops}. Give one, such as "
                "`count: 20`."
            )
        super().__init__(count=count, per=per, flops=flops, min_tokens=1 if count is None else 0)

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        return self.best(scores, tokens)
