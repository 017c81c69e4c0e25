"""HoloV's score: attention, and the difference of a token from its surroundings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.segments import Padding, segment_mean
from glimpse_lightning.core.token_places import crop_label
from glimpse_lightning.core.visual_tokens import VisionAttention, VisualTokens
from glimpse_lightning.scorers.base import Requires, Scorer


class Holistic(Scorer):
    """**Weights, at least 0**, whose mean over a crop is HoloV's score of the crop (arXiv 2510.02912).

    HoloV adds up, over the tokens of a crop (one of ``crops`` contiguous ranges of raster indices, not a rectangle),
    ``1000 A_i + diversity * scale * v_i``: ``A`` is the class token's attention, or on a tower without one the
    attention received; ``v_i`` is the variance of ``cos(x_i, x_j)`` over the crop's ``j``; ``scale`` makes the crop's
    mean of ``v``, plus 1e-6, equal to that of ``1000 A``. Inside a crop its code orders tokens by attention alone. The
    weight combines both: ``1000 A_i * (1 + diversity * v / (v + 1e-6))``, ``v`` the crop's mean. ``v`` includes the
    zero in the place of ``cos(x_i, x_i)`` and is seldom small. Diversity therefore changes the order of crops very
    little. The scores are meant for the policy ``CropRatio``.

    Departure: a crop of one token, ``v = 0``, keeps the factor 1000, which the method's code omits there.

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
        crop, crops = crop_label(tokens, self.crops), tokens.num_items * self.crops
        spread = segment_mean(self._variance(tokens, crop), crop, crops)
        return attention * (1 + self.diversity * spread / (spread + 1e-6))[crop]

    def _variance(self, tokens: VisualTokens, crop: Tensor) -> Tensor:
        padding = Padding(crop)
        unit = padding.pad(F.normalize(tokens.hidden.float(), dim=-1))
        present = padding.pad(torch.ones_like(tokens.item))[:, None].float()
        cosine = unit @ unit.transpose(1, 2)  # crops only: a 16th of an image on a side
        cosine.diagonal(dim1=1, dim2=2).zero_()
        others = (present.sum(-1, keepdim=True) - 1).clamp(min=1)
        mean = cosine.sum(-1, keepdim=True) / others  # gaps have cosine 0
        square = ((cosine - mean).square() * present).sum(-1, keepdim=True)  # the zero on the diagonal included
        return padding.unpad(square / others)[:, 0]
