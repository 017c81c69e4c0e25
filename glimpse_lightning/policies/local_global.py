"""VScan's first keep rule: half by window, half by image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.segments import floor_share, rank_first, rank_in_group
from glimpse_lightning.core.token_places import cell_label
from glimpse_lightning.core.visual_tokens import VisionAttention, VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_fraction, check_positive
from glimpse_lightning.scorers.base import Requires


class LocalGlobal(Budgeted):
    """A share of the budget evenly to windows of the image, the other one to the best tokens left (VScan, stage 1).

    arXiv 2505.22654: the local share goes to the tokens with most attention in a shallow vision block within each
    ``window x window`` window, the global share to the best scores (``VisionRank``, block -2 of CLIP). Attention is the
    class token's, or on a tower without one the attention received. The reducer ``MergeNearest(mode: mean)`` merges the
    others into the nearest kept ones.

    Departures: where the local share is no multiple of the number of windows, the windows whose next token has most
    attention get one more, where the method's code keeps fewer tokens (98 of a budget of 100, all of which are kept
    here too; else the sets are equal); one set per sample unless ``per: item``.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
        local: share of the budget that goes to windows.
        window: side of a window, in tokens.
        shallow_layer: block of the vision tower: a number from 0, or from -1 = the last, or a share of its depth.
        **keys: arguments of a budget, in place of ``budget``.
    """

    layer_arguments = {"shallow_layer": "vision"}

    def __init__(
        self,
        budget: Budget | float | None = None,
        *,
        local: float = 0.5,
        window: int = 6,
        shallow_layer: Layer = 5,
        **keys: Any,
    ) -> None:
        super().__init__(budget, **keys)
        check_fraction("local", local)
        check_positive("window", window, " token")
        self.local = local
        self.window = window
        self.shallow_layer: int = checked("shallow_layer", shallow_layer)

    @property
    def requires(self) -> Requires:
        return Requires(vision_layers=(VisionAttention(self.shallow_layer, queries="class"),))

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        present = scores > -torch.inf
        attention = tokens.attention(VisionAttention(self.shallow_layer, queries="class"))
        attention = torch.where(present, attention, -torch.inf)
        windows, window = cell_label(tokens, self.window).unique(return_inverse=True)
        in_window = rank_in_group(attention, window, len(windows))
        # The best of every window come before all second-best ones, and so on.
        turn = -(in_window * 2**32) - rank_in_group(attention, group, len(budget))
        first = floor_share(self.local, budget)
        local = present & (rank_in_group(turn, group, len(budget)) < first[group])
        return present & (rank_first(local, scores, group, len(budget)) < budget[group])
