"""How many tokens a group may keep: what the policies share that choose tokens one by one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.errors import GlimpseError
from glimpse_lightning.policies.checks import check_choice, check_count, check_fraction
from glimpse_lightning.segments import floor_share
from glimpse_lightning.visual_tokens import VisualTokens


class Budget:
    """A budget per group, as a share, as a number of tokens, or as a share of FLOPs; exactly one of them is given.

    Args:
        ratio: share to keep: ``floor(ratio * N)`` of the ``N`` tokens before any pruning (as ``KeepRatio`` rounds).
        count: tokens to keep.
        per: what the budget is counted over.
        min_tokens: floor, in tokens.
        flops: share of the unpruned prefill's FLOPs that the pruned one may cost; see :func:`tokens_for_flops`.
    """

    def __init__(
        self,
        ratio: float | None = None,
        count: int | None = None,
        per: Literal["sample", "item"] = "sample",
        min_tokens: int = 1,
        flops: float | None = None,
    ) -> None:
        if sum(value is not None for value in (ratio, count, flops)) != 1:
            raise ValueError(
                "Expected exactly one of `ratio`, `count` and `flops`, but got "
                f"ratio={ratio}, count={count}, flops={flops}."
            )
        for name, share in {"ratio": ratio, "flops": flops}.items():
            if share is not None:
                check_fraction(name, share)
        if count is not None:
            check_count("count", count)
        check_choice("per", per, ("sample", "item"))
        check_count("min_tokens", min_tokens)
        self.ratio = ratio
        self.count = count
        self.per = per
        self.min_tokens = min_tokens
        self.flops = flops

    @property
    def may_keep_nothing(self) -> bool:
        return self.min_tokens == 0 and self.count in (None, 0) and self.ratio != 1

    def budget(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """``(group [V], budget [groups])``: the group of each token, and how many tokens each group may keep."""
        group, total = tokens.groups(self.per)
        if self.count is not None:
            most = total.new_full(total.shape, self.count)
        elif self.ratio is not None:
            most = floor_share(self.ratio, total)
        else:
            assert self.flops is not None
            most = tokens_for_flops(self.flops, tokens)
            if self.per == "item":  # its share of what the sample may keep
                whole = tokens.groups("sample")[1].clamp(min=1)
                most = most[tokens.item_sample] * total // whole[tokens.item_sample]
        return group, most.clamp(min=self.min_tokens)


def tokens_for_flops(share: float, tokens: VisualTokens) -> Tensor:
    """``[S]`` the most visual tokens of each sample whose prefill costs at most ``share`` of the unpruned one.

    The largest ``v`` with ``sum_(l <= K) C(n_l) + (L - K - 1) C(v + t) <= share * L * C(N + t)``: ``C`` is
    :meth:`ModelFacts.layer_flops`, ``n_l`` tokens that layer ``l`` ran on, ``N`` all visual tokens, ``t`` text. So
    it is the cost of a prefill in which no later stage prunes, counted as :func:`~.token_counts.flops_ratio` does (the
    decoder's layers; neither head nor vision tower). 0 where the layers so far have cost too much already.

    Raises:
        GlimpseError: behind the last layer, where no number of tokens changes the cost.
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
    # C(n) = linear n + square n^2, so the root of C(n) = each; then the whole numbers beside it, against rounding.
    one, two = facts.layer_flops(1.0), facts.layer_flops(2.0)
    square = (two - 2 * one) / 2
    linear = one - square
    root = ((linear**2 + 4 * square * each.clamp(min=0)).sqrt() - linear) / (2 * square) - text
    near = root.floor()[:, None] + torch.arange(-1, 2, device=root.device)
    fits = facts.layer_flops(near + text[:, None]) <= each[:, None] * (1 + 1e-12)
    return torch.where(fits, near, 0.0).amax(1).minimum(total).clamp(min=0).long()
