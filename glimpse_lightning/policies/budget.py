"""How many tokens a group may keep: what the policies share that choose tokens one by one."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from glimpse_lightning.policies.checks import check_choice, check_count, check_fraction
from glimpse_lightning.visual_tokens import VisualTokens


class Budget:
    """A budget per group, as a share or as a number of tokens; exactly one of the two is given.

    Args:
        ratio: share to keep: ``floor(ratio * N)`` of the ``N`` tokens before any pruning (as ``KeepRatio`` rounds).
        count: tokens to keep.
        per: what the budget is counted over.
        min_tokens: floor, in tokens.
    """

    def __init__(
        self,
        ratio: float | None = None,
        count: int | None = None,
        per: Literal["sample", "item"] = "sample",
        min_tokens: int = 1,
    ) -> None:
        if (ratio is None) == (count is None):
            raise ValueError(f"Expected exactly one of `ratio` and `count`, but got ratio={ratio}, count={count}.")
        if ratio is not None:
            check_fraction("ratio", ratio)
        if count is not None:
            check_count("count", count)
        check_choice("per", per, ("sample", "item"))
        check_count("min_tokens", min_tokens)
        self.ratio = ratio
        self.count = count
        self.per = per
        self.min_tokens = min_tokens

    @property
    def may_keep_nothing(self) -> bool:
        return self.min_tokens == 0 and self.count in (None, 0) and self.ratio != 1

    def budget(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """``(group [V], budget [groups])``: the group of each token, and how many tokens each group may keep."""
        group, total = tokens.groups(self.per)
        if self.ratio is None:
            most = total.new_full(total.shape, self.count or 0)
        else:
            most = (self.ratio * total.double() + 1e-9).floor().long()
        return group, most.clamp(min=self.min_tokens)
