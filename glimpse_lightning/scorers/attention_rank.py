"""FastV's and PyramidDrop's score: attention of the last prompt token to each visual token."""

from __future__ import annotations

import math

from torch import Tensor

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.visual_tokens import ModelFacts, VisualTokens
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import AttentionProbe, Requires, Scorer


class AttentionRank(Scorer):
    """**Log-probabilities**: log of the attention weight that the last prompt token gives a token, averaged over heads.

    ``s_i = log mean_h softmax(q_last K / sqrt(d))_i``, the softmax over all tokens that the row sees, text included
    (FastV, arXiv 2403.06764; PyramidDrop, arXiv 2410.17247).

    Args:
        layer: decoder layer whose attention is read (number, or share of the depth); ``None``: ``after_layer``.
    """

    layer_arguments = {"layer": "decoder"}

    def __init__(self, layer: Layer | None = None) -> None:
        super().__init__()
        self.layer: int | None = checked("layer", layer)
        self._read = -1

    def build(self, facts: ModelFacts, after_layer: int) -> None:
        last = min(after_layer, facts.num_layers - 1)
        self._read = last if self.layer is None else self.layer
        if not 0 <= self._read <= last:
            raise GlimpseError(
                f"Expected AttentionRank to read a layer between 0 and the stage's last layer {last}, but got layer "
                f"{self._read}. No attention exists before layer 0 has run, and later layers run after the stage: "
                "raise `after_layer`, lower `layer`, or use a scorer that needs no attention."
            )

    @property
    def requires(self) -> Requires:
        return Requires(probes={"last": AttentionProbe(layers=(self._read,), query="last", scale="log_softmax")})

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Log-probabilities ``[V]``."""
        weights_VH = tokens.probes["last"].float()
        return weights_VH.logsumexp(-1) - math.log(weights_VH.shape[-1])
