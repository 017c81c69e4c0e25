"""CDPruner's keep rule: a determinantal point process conditioned on relevance."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.greedy import GroupRows, greedy
from glimpse_lightning.policies.scale import min_max

EPSILON = 1e-6


class DPP(Budgeted):
    """Greedy MAP of a conditional determinantal point process (CDPruner, arXiv 2506.10967; Chen et al. 2018).

    Kernel ``L = diag(r) S diag(r)`` with ``S`` the cosines of the states at the stage and ``r = (s - min s + 1e-6) /
    (max s - min s)``, the relevance ``s`` being the score. Again and again the token that raises ``log det L`` of the
    chosen ones most, by Cholesky updates; a row of ``L`` is computed when it is needed.

    Departures: ``min`` and ``max`` are taken per item (the paper's code takes them over the whole batch, so that
    results depend on batch mates and tiles); tokens that the chosen ones already span follow by position; one set per
    sample unless ``per: item``. Arguments: see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
    """

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        rows = GroupRows.of(scores, tokens, *self.budget(tokens))
        clean = torch.where(scores.isnan(), -torch.inf, scores.detach().float())
        relevance = rows.padding.pad(min_max(clean, tokens.item, tokens.num_items, EPSILON))
        groups, length = relevance.shape
        each = torch.arange(groups, device=relevance.device)
        steps = min(length, int(rows.budget.max())) if groups else 0
        factors = relevance.new_zeros(groups, steps, length)  # rows of the Cholesky factor so far
        volume = relevance.square()  # what each token would add: the squared pivot

        def update(pick: Tensor, step: int) -> Tensor:
            nonlocal volume
            row = relevance[each, pick, None] * relevance * rows.similarity(pick)
            row = row - (factors[each, :step, pick][:, None] @ factors[:, :step])[:, 0]
            pivot = volume[each, pick, None]
            factor = torch.where(pivot > EPSILON**2, row / pivot.clamp(min=EPSILON**2).sqrt(), 0.0)
            factors[:, step] = factor
            volume = (volume - factor.square()).clamp(min=0)
            return volume

        return rows.padding.unpad(greedy(rows, volume, update))
