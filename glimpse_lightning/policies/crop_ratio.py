"""HoloV's keep rule: a budget for each part of the image, by how much it matters."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.checks import check_choice, check_count
from glimpse_lightning.policies.scale import weights
from glimpse_lightning.segments import crop_label, rank_in_group, segment_mean
from glimpse_lightning.visual_tokens import VisualTokens


class CropRatio(Budget, Policy):
    """Each crop of an image gets a part of the budget in proportion to its mean weight, and keeps its best (HoloV).

    arXiv 2510.02912. As in the method's code a crop is a *contiguous range of raster indices*, ``crops`` of them per
    image, not a rectangle.

    Departures: parts are rounded to whole tokens by highest quotients ``mean / (rank + 1/2)`` (Sainte-Lague), so that
    the budget is met and no crop gets more than it has; one budget per sample unless ``per: item``.

    Args:
        ratio, count, per, min_tokens, flops: see :class:`~glimpse_lightning.policies.budget.Budget`.
        crops: ranges per image.
        scale: ``"raw"``: scores are weights (HoloV's); ``"log"``: logarithms of weights (attention scorers).
    """

    def __init__(
        self,
        ratio: float | None = None,
        count: int | None = None,
        crops: int = 16,
        scale: Literal["log", "raw"] = "raw",
        per: Literal["sample", "item"] = "sample",
        min_tokens: int = 1,
        flops: float | None = None,
    ) -> None:
        super().__init__(ratio, count, per, min_tokens, flops)
        check_count("crops", crops)
        check_choice("scale", scale, ("log", "raw"))
        if crops == 0:
            raise ValueError("Expected argument `crops` to be at least 1, but got 0.")
        self.crops = crops
        self.scale = scale

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        present = scores > -torch.inf
        crop = crop_label(tokens, self.crops)
        weight = weights(scores, self.scale, group, len(budget)).clamp(min=0)
        total = tokens.num_items * self.crops
        mean = segment_mean(weight.double(), crop, total)[crop]
        rank = rank_in_group(scores, crop, total)
        quotient = torch.where(present, mean / (rank + 0.5), -torch.inf)
        return present & (rank_in_group(quotient, group, len(budget)) < budget[group])
