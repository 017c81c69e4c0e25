"""Maximal marginal relevance: importance against redundancy."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_choice, check_fraction
from glimpse_lightning.policies.greedy import GroupRows, greedy
from glimpse_lightning.policies.scale import min_max, weights


class MMR(Budgeted):
    """Greedy maximal marginal relevance (IDPruner, AngelSlim; Carbonell and Goldstein 1998).

    Again and again ``argmax_i trade_off * importance_i - (1 - trade_off) * max_(j in chosen) cos(x_i, x_j)`` over the
    states at the stage; the first choice is the most important token.

    The importance is the score brought to [0, 1] within the group, as in IDPruner, whose scorer is a trained one.
    Departures: a ratio is rounded down, where IDPruner's code takes the nearest number of tokens; one set per sample
    unless ``per: item``.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
        trade_off: weight of the importance, in [0, 1].
        scale: ``"raw"``, the default: the importance is the score; ``"log"``: the score is the importance's logarithm.
        **keys: arguments of a budget, in place of ``budget``.
    """

    def __init__(
        self,
        budget: Budget | float | None = None,
        *,
        trade_off: float = 0.5,
        scale: Literal["log", "raw"] = "raw",
        **keys: Any,
    ) -> None:
        super().__init__(budget, **keys)
        check_fraction("trade_off", trade_off)
        check_choice("scale", scale, ("log", "raw"))
        self.trade_off = trade_off
        self.scale = scale

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        importance = min_max(weights(scores, self.scale, group, len(budget)), group, len(budget))
        rows = GroupRows.of(scores, tokens, group, budget)
        gain = self.trade_off * rows.padding.pad(importance)
        nearest = torch.full_like(gain, -torch.inf)

        def update(pick: Tensor, step: int) -> Tensor:
            nonlocal nearest
            nearest = torch.maximum(nearest, rows.similarity(pick))
            return gain - (1 - self.trade_off) * nearest

        return rows.padding.unpad(greedy(rows, gain, update))
