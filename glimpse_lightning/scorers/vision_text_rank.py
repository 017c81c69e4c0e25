"""AutoPrune's score: attention inside the vision tower plus the text's attention, weighted by its information."""

from __future__ import annotations

import math

from torch import Tensor

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.segments import segment_mean, segment_sum
from glimpse_lightning.core.visual_tokens import VisionAttention, VisualTokens
from glimpse_lightning.scorers.base import AttentionProbe, Requires
from glimpse_lightning.scorers.text_rank import TextRank

INFORMATION = Requires(probes={"information": AttentionProbe(layers=(0,), query="text", scale="information")})
"""Inputs of :func:`information`."""


class VisionTextRank(TextRank):
    """**Weights, at least 0**: ``v_i + gain * I * mean_(t, h) A_h[t, i]`` (AutoPrune, arXiv 2509.23931).

    ``v`` is the attention inside the vision tower (of the class token, or received from all tokens; see
    ``VisionAttention``), ``t`` runs over the text tokens after the first visual token, ``h`` over heads, and ``I`` is
    the sample's information in layer 0, in bits; see :func:`information`. AutoPrune uses this score for its first
    stage. Its later stages use the text's attention alone (``TextRank``, ``select: false``).

    Departures: ``v`` is divided by its sum over the sample's tokens at the stage, so that both parts are shares of one
    attention row; the class token's attention to itself, in the method's code, makes its ``v`` sum up to less. ``I`` is
    of attention that sums up to 1 over text and image; the method's code takes the rows as they are. Together these
    change 0.5 % of the tokens that its code keeps of random ones.

    Args:
        layer: decoder layer whose attention is read (number, or share of the depth); ``None``: ``after_layer``.
        vision_layer: block of the vision tower: a number from 0, or from -1 = the last, or a share of its depth.
        gain: weight of the text's attention.
        select: whether only text tokens that resemble the image count, as in ``TextRank``.
    """

    layer_arguments = {**TextRank.layer_arguments, "vision_layer": "vision"}

    def __init__(
        self, layer: Layer | None = None, vision_layer: Layer = -2, gain: float = 0.3, select: bool = False
    ) -> None:
        super().__init__(layer, select)
        self.vision_layer: int = checked("vision_layer", vision_layer)
        self.gain = gain

    @property
    def requires(self) -> Requires:
        vision = (VisionAttention(self.vision_layer, queries="class"),)
        return super().requires | INFORMATION | Requires(vision_layers=vision)

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Weights ``[V]``."""
        sample, samples = tokens.sample, tokens.num_samples
        vision = tokens.attention(VisionAttention(self.vision_layer, queries="class"))
        vision = vision / segment_sum(vision, sample, samples).clamp(min=1e-20)[sample]
        return vision + self.gain * information(tokens).float()[sample] * super().forward(tokens).exp()


def information(tokens: VisualTokens) -> Tensor:
    """``[S]`` mutual information of text and visual tokens in each sample, in bits, float64.

    ``sum_h MI(A_h[T, V]) / |T|``, as the probe ``"information"`` captures it in nats; 0 where a sample has no visual
    tokens.
    """
    nats = tokens.probes["information"].double().sum(-1)  # over heads; the same for all tokens of a sample
    return segment_mean(nats / math.log(2), tokens.sample, tokens.num_samples)
