"""SCOPE's keep rule: cover all tokens, by salient ones."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_choice
from glimpse_lightning.policies.greedy import GroupRows, greedy
from glimpse_lightning.policies.scale import weights


class Coverage(Budgeted):
    """Greedy coverage weighted by saliency (SCOPE, as in AngelSlim).

    Again and again ``argmax_j saliency_j^power * sum_i max(0, cos(x_i, x_j) - covered_i)`` over the states at the
    stage, where ``covered_i = max(0, max_(k in chosen) cos(x_i, x_k))`` and ``i`` runs over all tokens of the group.

    The gain of a candidate needs its similarity to every token, so here, and only here, all pairs of a group are in
    memory, a few groups at a time. Departure: one set per sample unless ``per: item``.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
        power: exponent of the saliency; 0 is coverage alone.
        scale: ``"log"``: scores are logarithms of saliencies (attention scorers); ``"raw"``: saliencies, at least 0.
        **keys: arguments of a budget, in place of ``budget``.
    """

    def __init__(
        self,
        budget: Budget | float | None = None,
        *,
        power: float = 1.0,
        scale: Literal["log", "raw"] = "log",
        **keys: Any,
    ) -> None:
        super().__init__(budget, **keys)
        check_choice("scale", scale, ("log", "raw"))
        self.power = power
        self.scale = scale

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        rows = GroupRows.of(scores, tokens, group, budget)
        rows.scores = rows.padding.pad(weights(scores, self.scale, group, len(budget)).clamp(min=0) ** self.power)
        chosen = [self._select(part) for part in rows.parts()]
        return rows.padding.unpad(torch.cat(chosen)) if chosen else torch.zeros_like(scores, dtype=torch.bool)

    def _select(self, rows: GroupRows) -> Tensor:
        cosine = rows.features @ rows.features.transpose(1, 2)
        covered = torch.zeros_like(rows.scores).masked_fill(~rows.present, torch.inf)

        def gain() -> Tensor:
            return rows.scores * (cosine - covered[..., None]).clamp_(min=0).sum(1)

        def update(pick: Tensor, step: int) -> Tensor:
            nonlocal covered
            covered = torch.maximum(covered, rows.similarity(pick))
            return gain()

        return greedy(rows, gain(), update)
