"""HoloV's score: attention, and how much a token differs from its surroundings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.layers import Layer, checked
from glimpse_lightning.scorers.base import Requires, Scorer
from glimpse_lightning.segments import Padding, crop_label, segment_mean
from glimpse_lightning.visual_tokens import VisionAttention, VisualTokens


class Holistic(Scorer):
    """**Weights, at least 0**: ``t_i = 1000 A_i + diversity * scale * Var_j cos(x_i, x_j)`` (HoloV, arXiv 2510.02912).

    ``A`` is the attention inside the vision tower (see ``VisionAttention``), ``j`` runs over the token's crop (one of
    ``crops`` contiguous ranges of raster indices, not a rectangle), the variance is unbiased, and ``scale`` is what
    makes the means of ``1000 A`` and of the variance over the image equal. Meant for the policy ``CropRatio``.

    Departure: a crop of one token has variance 0.

    Args:
        layer: block of the vision tower: a number from 0, or from -1 = the last, or a share of its depth.
        diversity: weight of the variance.
        crops: ranges per image.
    """

    layer_arguments = {"layer": "vision"}

    def __init__(self, layer: Layer = -2, diversity: float = 0.09, crops: int = 16) -> None:
        super().__init__()
        self.layer: int = checked("layer", layer)
        self.diversity = diversity
        self.crops = crops

    @property
    def requires(self) -> Requires:
        return Requires(vision_layers=(VisionAttention(self.layer, queries="class"),))

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Weights ``[V]``."""
        attention = 1000 * tokens.attention(VisionAttention(self.layer, queries="class"))
        variance = self._variance(tokens)
        item, items = tokens.item, tokens.num_items
        scale = segment_mean(attention, item, items) / segment_mean(variance, item, items).clamp(min=1e-12)
        return attention + self.diversity * scale[item] * variance

    def _variance(self, tokens: VisualTokens) -> Tensor:
        padding = Padding(crop_label(tokens, self.crops))
        unit = padding.pad(F.normalize(tokens.hidden.float(), dim=-1))
        present = padding.pad(torch.ones_like(tokens.item))[:, None].float()
        cosine = unit @ unit.transpose(1, 2)  # crops only: a 16th of an image on a side
        count = present.sum(-1, keepdim=True)
        mean = (cosine * present).sum(-1, keepdim=True) / count.clamp(min=1)
        square = ((cosine - mean).square() * present).sum(-1, keepdim=True)
        return padding.unpad(square / (count - 1).clamp(min=1))[:, 0]
