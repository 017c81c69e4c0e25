"""Budget: how many tokens each group may keep."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from glimpse_lightning.core.segments import floor_share
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.checks import check_choice, check_count, check_fraction
from glimpse_lightning.runtime.errors import GlimpseError

Per = Literal["sample", "item"]


@dataclass(frozen=True)
class Budget:
    """A budget per group, as a share, as a number of tokens, or as a share of FLOPs; exactly one of them is given.

    Called with tokens it returns ``(group [V], budget [groups])``: the group of each token, and the number of tokens
    that each group may keep.

    Args:
        ratio: share to keep: ``floor(ratio * N)`` of the ``N`` tokens before any pruning (as ``KeepRatio`` rounds).
        count: number of tokens to keep.
        per: group that the budget is counted over; by default the policy's own, ``sample`` unless the policy says
            otherwise.
        min_tokens: floor, in tokens; by default each group keeps at least one.
        flops: share of the unpruned prefill's FLOPs that the pruned one may cost; see :func:`tokens_for_flops`.

    Raises:
        ValueError: where not exactly one of `ratio`, `count` and `flops` is given, or a value is out of range.
    """

    ratio: float | None = None
    count: int | None = None
    per: Per | None = None
    min_tokens: int = 1
    flops: float | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.ratio, self.count, self.flops)) != 1:
            raise ValueError(
                f"Expected exactly one of `ratio`, `count` and `flops`, but got ratio={self.ratio}, "
                f"count={self.count}, flops={self.flops}. Give one, such as `ratio: 0.1`."
            )
        for name, share in {"ratio": self.ratio, "flops": self.flops}.items():
            if share is not None:
                check_fraction(name, share)
        if self.count is not None:
            check_count("count", self.count)
        if self.per is not None:
            check_choice("per", self.per, ("sample", "item"))
        check_count("min_tokens", self.min_tokens)

    @classmethod
    def of(cls, budget: Budget | float | None, **keys: Any) -> Budget:
        """The budget that a policy's arguments describe: ``budget`` as it is, or one made of ``keys``.

        Args:
            budget: a budget; or a number, which is its ratio.
            **keys: arguments of a budget, in place of one.

        Raises:
            ValueError: where both a budget and keys are given, and where the keys make no budget.
        """
        if isinstance(budget, Budget):
            if twice := [name for name, value in keys.items() if value != _DEFAULTS.get(name, ...)]:
                raise ValueError(f"Expected `budget` or `{twice[0]}`, but got both. Write `{twice[0]}` in the budget.")
            return budget
        if budget is not None:
            keys["ratio"] = budget
        return cls(**keys)

    @property
    def may_keep_nothing(self) -> bool:
        """Whether a group can lose all of its tokens."""
        return self.min_tokens == 0 and self.count in (None, 0) and self.ratio != 1

    def __call__(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        group, total = tokens.groups(self.per or "sample")
        return group, self._most(tokens, total).clamp(min=self.min_tokens)

    def _most(self, tokens: VisualTokens, total: Tensor) -> Tensor:
        if self.count is not None:
            return total.new_full(total.shape, self.count)
        if self.ratio is not None:
            return floor_share(self.ratio, total)
        assert self.flops is not None
        most = tokens_for_flops(self.flops, tokens)
        if self.per != "item":
            return most
        whole = tokens.groups("sample")[1].clamp(min=1)  # an item gets its share of what the sample may keep
        return most[tokens.item_sample] * total // whole[tokens.item_sample]


_DEFAULTS = {entry.name: entry.default for entry in fields(Budget)}


def tokens_for_flops(share: float, tokens: VisualTokens) -> Tensor:
    """``[S]`` largest number of visual tokens of each sample at ``share`` of the unpruned prefill's FLOPs.

    It is the largest ``v`` with ``sum_(l <= K) C(n_l) + (L - K - 1) C(v + t) <= share * L * C(N + t)``: ``C`` is
    :meth:`ModelFacts.layer_flops`, ``n_l`` tokens that layer ``l`` ran on, ``N`` all visual tokens, ``t`` text. So
    it is the cost of a prefill in which no later stage prunes, counted as :func:`~.token_counts.flops_ratio` does (the
    decoder's layers; neither head nor vision tower). 0 where the layers so far have cost too much already.

    Raises:
        GlimpseError: after the last layer, where no number of tokens changes the cost.
    """
    if tokens.text_length is None or tokens.layer_tokens is None:
        raise ValueError("Expected tokens with `text_length` and `layer_tokens`, which a budget of `flops` counts.")
    facts = tokens.facts
    layers = facts.num_layers - tokens.layer_tokens.shape[1]
    if layers <= 0:
        raise GlimpseError("A budget of `flops` needs a stage before the last layer, but this one stands behind it.")
    total = tokens.groups("sample")[1].double()
    text = tokens.text_length.double()
    allowed = share * facts.num_layers * facts.layer_flops(total + text)
    each = (allowed - facts.layer_flops(tokens.layer_tokens.double()).sum(1)) / layers
    # C(n) = linear n + square n^2, so the root of C(n) = each; then the whole numbers next to it, against rounding.
    one, two = facts.layer_flops(1.0), facts.layer_flops(2.0)
    square = (two - 2 * one) / 2
    linear = one - square
    root = ((linear**2 + 4 * square * each.clamp(min=0)).sqrt() - linear) / (2 * square) - text
    near = root.floor()[:, None] + torch.arange(-1, 2, device=root.device)
    fits = facts.layer_flops(near + text[:, None]) <= each[:, None] * (1 + 1e-12)
    return torch.where(fits, near, 0.0).amax(1).minimum(total).clamp(min=0).long()
