"""SparseVLM's score: attention that a visual token gets from the text tokens related to the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.segments import Padding, segment_count, segment_mean
from glimpse_lightning.core.visual_tokens import ModelFacts, VisualTokens
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import AttentionProbe, Requires, Scorer


class TextRank(Scorer):
    """**Log-probabilities**: log of the attention that the raters give a token, averaged over raters and heads.

    ``s_i = log mean_(t in R) mean_h A_h[t, i]`` (SparseVLM, arXiv 2410.04417). The raters ``R`` are chosen once, before
    layer 0, among the text tokens after the first visual token: those with ``m_t > mean m``, where ``m_t = mean_i
    softmax_t(x_i . t)`` over the visual tokens ``i``.

    Departure: all heads count (v2 of the method's code takes the half with most attention on the image).

    Args:
        layer: decoder layer whose attention is read (number, or share of the depth); ``None``: ``after_layer``.
        select: whether raters are chosen; ``false``: all text tokens after the first visual token are raters.
    """

    layer_arguments = {"layer": "decoder"}

    def __init__(self, layer: Layer | None = None, select: bool = True) -> None:
        super().__init__()
        self.layer: int | None = checked("layer", layer)
        self.select = select
        self._read = -1

    def build(self, facts: ModelFacts, after_layer: int) -> None:
        last = min(after_layer, facts.num_layers - 1)
        self._read = last if self.layer is None else self.layer
        if not 0 <= self._read <= last:
            raise GlimpseError(
                f"Expected TextRank to read a layer between 0 and the stage's last layer {last}, but got layer "
                f"{self._read}: raise `after_layer`, or lower `layer`."
            )

    @property
    def requires(self) -> Requires:
        return Requires(probes={"text": AttentionProbe(layers=(self._read,), query="text", scale="log_softmax")})

    def raters(self, tokens: VisualTokens) -> Tensor:
        """Boolean ``[T]``: text tokens that are more similar to the image's tokens than the average text token."""
        assert tokens.text is not None and tokens.text_sample is not None
        if not self.select or not len(tokens) or not len(tokens.text):
            return super().raters(tokens)
        samples = tokens.num_samples
        text, visual = Padding(tokens.text_sample, samples), Padding(tokens.sample, samples)
        text_STD, visual_SVD = text.pad(tokens.text.float()), visual.pad(tokens.hidden.float())
        asks = text.pad(torch.ones_like(tokens.text_sample)).bool()
        seen = visual.pad(torch.ones_like(tokens.sample)).float()
        likeness = (visual_SVD @ text_STD.transpose(1, 2)).masked_fill(~asks[:, None], -1e30).softmax(-1)
        mean = (likeness * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)
        relevance = text.unpad(mean)
        average = segment_mean(relevance, tokens.text_sample, samples)
        chosen = relevance > average[tokens.text_sample]
        nobody = segment_count(tokens.text_sample, samples, chosen) == 0  # one token, or equal ones: all are raters
        return chosen | nobody[tokens.text_sample]

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Log-probabilities ``[V]``."""
        weights_VH = tokens.probes["text"].float()
        return weights_VH.logsumexp(-1) - math.log(weights_VH.shape[-1])
