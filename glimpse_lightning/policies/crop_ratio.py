"""HoloV's keep rule: a budget for each part of the image, by how much it matters."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from glimpse_lightning.core.segments import floor_share, rank_first, rank_in_group, segment_mean, segment_sum
from glimpse_lightning.core.token_places import crop_label
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_choice, check_positive
from glimpse_lightning.policies.scale import weights


class CropRatio(Budgeted):
    """Each crop of an image gets a part of the budget in proportion to its mean weight, and keeps its best (HoloV).

    arXiv 2510.02912. As in the method's code a crop is a *contiguous range of raster indices*, ``crops`` of them per
    image, not a rectangle, and the first ones have a token more where they cannot be equally long. Parts are floored;
    what that leaves over goes to the crops of largest weight, one token each.

    What a crop is too short for is lost, as in the method's code, which puts zeros there: fewer tokens than the budget
    are then kept (one and two fewer in two of 24 random settings). ``fill: true`` gives it to the best tokens of the
    other crops, so that the budget is met.

    Departure: one budget per sample unless ``per: item``.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
        crops: ranges per image.
        scale: ``"raw"``: scores are weights (HoloV's); ``"log"``: logarithms of weights (attention scorers).
        fill: whether tokens that a crop is too short for are kept in other crops; by default they are lost.
        **keys: arguments of a budget, in place of ``budget``.
    """

    def __init__(
        self,
        budget: Budget | float | None = None,
        *,
        crops: int = 16,
        scale: Literal["log", "raw"] = "raw",
        fill: bool = False,
        **keys: Any,
    ) -> None:
        super().__init__(budget, **keys)
        check_positive("crops", crops)
        check_choice("scale", scale, ("log", "raw"))
        self.crops = crops
        self.scale = scale
        self.fill = fill

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        present = scores > -torch.inf
        crop = crop_label(tokens, self.crops)
        weight = weights(scores, self.scale, group, len(budget)).clamp(min=0)
        total = tokens.num_items * self.crops
        mean = segment_mean(weight.double(), crop, total)
        owner = torch.arange(tokens.num_items, device=crop.device) if self.per == "item" else tokens.item_sample
        owner = owner.repeat_interleave(self.crops)  # the group of each crop
        share = mean / segment_sum(mean, owner, len(budget)).clamp(min=1e-20)[owner]
        part = floor_share(share, budget[owner])
        over = budget - segment_sum(part, owner, len(budget))
        part += rank_in_group(share, owner, len(budget)) < over[owner]
        first = present & (rank_in_group(scores, crop, total) < part[crop])
        if not self.fill:
            return first
        return present & (rank_first(first, scores, group, len(budget)) < budget[group])
