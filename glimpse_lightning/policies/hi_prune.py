"""HiPrune's keep rule: anchors of a middle vision block with their neighbours, then registers of the last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.segments import rank_first, rank_in_group
from glimpse_lightning.core.token_places import index_in_item
from glimpse_lightning.core.visual_tokens import VisionAttention, VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_fraction
from glimpse_lightning.scorers.base import Requires


class HiPrune(Budgeted):
    """Anchors, buffers and registers (HiPrune, arXiv 2508.00553).

    Of a budget ``B``, the ``anchors * B / 5`` tokens, to the nearest whole number (of two the even one), with most
    attention in the middle block ``object_layer`` are anchors; their four neighbours, of index ``i - 1, i + 1, i - w,
    i + w`` in raster order, are buffers; the rest of the budget goes to the best-scoring tokens (registers).

    As in the method's code attention is the mean over all queries also where the tower has a class token, for registers
    too: the scorer is ``VisionRank(layer: -1, queries: all)``. Neighbours are indices, not places: they are clamped to
    the image but wrap around at the ends of rows.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`;
            HiPrune is ``per: item``.
        anchors: share of the budget for anchors and buffers (the paper's alpha).
        object_layer: block of the vision tower: a number from 0, or from -1 = the last, or a share of its depth. The
            method's own setting, 9, is the ninth block: 8 here.
        **keys: arguments of a budget, in place of ``budget``.
    """

    layer_arguments = {"object_layer": "vision"}
    default_per = "item"

    def __init__(
        self,
        budget: Budget | float | None = None,
        *,
        anchors: float = 0.1,
        object_layer: Layer = 8,
        **keys: Any,
    ) -> None:
        super().__init__(budget, **keys)
        check_fraction("anchors", anchors)
        self.anchors = anchors
        self.object_layer: int = checked("object_layer", object_layer)

    @property
    def requires(self) -> Requires:
        return Requires(vision_layers=(VisionAttention(self.object_layer),))

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        present = scores > -torch.inf
        attention = torch.where(present, tokens.attention(VisionAttention(self.object_layer)), -torch.inf)
        count = (budget.double() * self.anchors / 5).round().long()
        anchor = present & (rank_in_group(attention, group, len(budget)) < count[group])
        first = present & self._with_neighbours(anchor, tokens)
        return present & (rank_first(first, scores, group, len(budget)) < budget[group])

    def _with_neighbours(self, anchor: Tensor, tokens: VisualTokens) -> Tensor:
        size = tokens.grid.prod(-1)
        start, last = (size.cumsum(0) - size)[tokens.item], (size - 1)[tokens.item]
        index, width = index_in_item(tokens), tokens.grid[tokens.item, 2]
        marked = torch.zeros(int(size.sum()), dtype=torch.bool, device=anchor.device)
        marked[(start + index)[anchor]] = True
        for step in (-1, 1, -width, width):
            marked[(start + torch.minimum((index + step).clamp(min=0), last))[anchor]] = True
        return marked[start + index]
