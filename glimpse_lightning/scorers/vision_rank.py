"""FasterVLM's and VisionZip's score: attention that a token gets inside the vision tower."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.visual_tokens import VisionAttention, VisualTokens
from glimpse_lightning.scorers.base import Requires, Scorer


class VisionRank(Scorer):
    """**Log-weights**: log of the attention that a token gets in a block of the vision tower, independent of the
    question.

    With a class token ``log mean_h softmax(q_cls K / sqrt(d))_i`` (FasterVLM, arXiv 2412.01818; VisionZip's dominant
    tokens, arXiv 2412.04467). Without one, and with ``queries: all``, ``log sum_j mean_h softmax(q_j K / sqrt(d))_i``
    over all ``j`` of the token's segment; a token of several merged patches has their mean.

    Departures: VisionZip sums over heads, which gives the same order. In windowed towers (Qwen2.5-VL) a block without
    full attention covers only a patch's window; choose a block with full attention there.

    Args:
        layer: block of the vision tower: a number from 0, or from -1 = the last, or a share of its depth.
        heads: ``"mean"``: weights averaged over heads; ``"joint"``: all heads as one (PruMerge).
        queries: ``"class"``: attention of the class token, or of all tokens on towers without one; ``"all"``: attention
            of all tokens on every tower (HiPrune).
    """

    layer_arguments = {"layer": "vision"}

    def __init__(
        self,
        layer: Layer = -2,
        heads: Literal["mean", "joint"] = "mean",
        queries: Literal["class", "all"] = "class",
    ) -> None:
        super().__init__()
        self.layer: int = checked("layer", layer)
        self.heads = heads
        self.queries = queries

    @property
    def tap(self) -> VisionAttention:
        """The attention whose logarithms are the scores."""
        return VisionAttention(self.layer, self.heads, self.queries)

    @property
    def requires(self) -> Requires:
        return Requires(vision_layers=(self.tap,))

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Log-weights ``[V]``."""
        return tokens.attention(self.tap).clamp(min=torch.finfo(torch.float32).tiny).log()
