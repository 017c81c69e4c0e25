"""Late interaction: a token matters if any word of the question, as the decoder understands it, looks for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from glimpse_lightning.core.layers import Layer, checked, reached
from glimpse_lightning.core.segments import Padding
from glimpse_lightning.core.visual_tokens import ModelFacts, VisualTokens
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import AttentionProbe, Requires, Scorer, in_sight
from glimpse_lightning.scorers.vip_network import Standardise

ROWS = 64
"""Text tokens that are compared at once: no matrix of all pairs is held where nothing is trained."""
TYPICAL = 16
"""Text tokens of a prompt for which an untrained scorer's logits are near 0."""
NO_MATCH = -1e4
"""Logit of a text token that is none; finite, so that gradients are."""


class LateInteraction(Scorer):
    """**Logits** that say whether any of the question's tokens looks for a visual token.

    ``s_i = log sum_t sum_h exp(g_h * q_th . k_ih / sqrt(d) + b_h) + a . A_i + c`` with ``q_t = W_q x_t`` of a text
    token's states after several decoder layers and ``k_i = W_k y_i`` of a visual token's states, on entering the
    decoder and at the stage. A head is one thing to look for, and has to match in all respects at once; the sum over
    text tokens and heads is a soft "or". ``A_i`` are logs of the attention that token ``i`` gets, by head, from the
    last prompt token and, on average, from the text tokens after the first image.

    States of early layers hold what a word has met in the image (which colour and shape a label has), those of later
    ones what several words ask for together. Where prompts ask several things in a row, later layers keep the last one;
    therefore more than one layer is read. All states are brought to mean 0 and variance 1, feature by feature, as
    measured on the first batch of a training.

    Comparing every token of a text with every part of an image by dot products, and taking the best, is late
    interaction (ColBERT, arXiv 2004.12832; ColPali, arXiv 2407.01449, on images); its use as a learned scorer for
    pruning, with the states of a frozen decoder, is this package's own. The cost is linear in the visual tokens. Before
    layer 0 the text's states are word embeddings, and there is no attention.

    Args:
        text_layers: decoder layers after which the text tokens' states are read; -1: on entering layer 0. ``None``: the
            first layer and the stage's ``after_layer``.
        attention_layers: decoder layers whose attention counts, too; ``None``: the stage's ``after_layer``; ``"all"``:
            that one and all before it; an empty list: no attention.
        dim: width ``d`` of a head.
        heads: number of heads.
    """

    heeds_gates = True  # a token's logit does not depend on the other visual tokens
    layer_arguments = {"text_layers": "decoder", "attention_layers": "decoder"}
    query: nn.Linear
    key: nn.Linear

    def __init__(
        self,
        text_layers: Sequence[Layer] | None = None,
        attention_layers: Sequence[Layer] | Literal["all"] | None = None,
        dim: int = 64,
        heads: int = 4,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("heads", heads)):
            if value < 1:
                raise ValueError(f"Expected `{name}` to be at least 1, but got {value}.")
        self.text_layers: Sequence[int] | None = checked("text_layers", text_layers)
        self.attention_layers: Sequence[int] | Literal["all"] | None = checked("attention_layers", attention_layers)
        self.dim = dim
        self.heads = heads
        self.texts: tuple[int, ...] = ()
        self.attended: tuple[int, ...] = ()
        self.reads_hidden = True

    def build(self, facts: ModelFacts, after_layer: int) -> None:
        last = min(after_layer, facts.num_layers - 1)
        texts = (min(0, last), last) if self.text_layers is None else self.text_layers
        attended = self.attention_layers
        if attended is None or attended == "all":  # none before layer 0
            attended = range(0 if attended else max(0, last), last + 1)
        self.texts = reached("text_layers", [*dict.fromkeys(texts)], last, first=-1)
        self.attended = reached("attention_layers", attended, last)
        if not self.texts:
            raise GlimpseError("Expected `text_layers` to name at least one layer, but got none.")
        self.reads_hidden = last >= 0  # before layer 0 they are the embeddings
        text, visual = len(self.texts) * facts.hidden_size, (1 + self.reads_hidden) * facts.hidden_size
        self.query = nn.Linear(text, self.heads * self.dim)
        self.key = nn.Linear(visual, self.heads * self.dim)
        self.gain = nn.Parameter(torch.zeros(self.heads))
        self.offset = nn.Parameter(torch.full((self.heads,), -math.log(TYPICAL * self.heads)))
        self.scales = nn.ModuleDict({"text": Standardise(text), "visual": Standardise(visual)})
        features = 2 * len(self.attended) * facts.num_heads
        if features:
            self.attention = nn.Linear(features, 1)
            nn.init.zeros_(self.attention.weight)
            nn.init.zeros_(self.attention.bias)
            self.scales["attention"] = Standardise(features)

    @property
    def requires(self) -> Requires:
        probes = {}
        if self.attended:
            probes["last"] = AttentionProbe(layers=self.attended, scale="log_softmax")
            probes["text"] = AttentionProbe(layers=self.attended, query="text", scale="log_softmax")
        return Requires(probes=probes, text_layers=self.texts)

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Logits ``[V]``, fp32."""
        assert tokens.text_sample is not None
        text_TF = torch.cat([tokens.text_states[layer] for layer in self.texts], -1)
        visual_VF = torch.cat([tokens.embeds, tokens.hidden], -1) if self.reads_hidden else tokens.embeds
        gain_H1 = (self.gain.exp() * self.dim**-0.5)[:, None]
        query_THd = gain_H1 * self._heads(self.query, "text", text_TF)
        key_VHd = self._heads(self.key, "visual", visual_VF)
        text, visual = Padding(tokens.text_sample, tokens.num_samples), Padding(tokens.sample, tokens.num_samples)
        query_SHTd, key_SHVd = text.pad(query_THd).transpose(1, 2), visual.pad(key_VHd).transpose(1, 2)
        real_ST = text.pad(torch.ones_like(tokens.text_sample, dtype=torch.bool))
        blocks = zip(query_SHTd.split(ROWS, 2), real_ST.split(ROWS, 1), strict=True)
        logits = visual.unpad(torch.stack([self._sought(key_SHVd, *block) for block in blocks]).logsumexp(0))
        if self.attended:
            seen = in_sight(torch.cat([tokens.probes["last"], tokens.probes["text"]], -1))
            seen = self.scales["attention"](seen).to(self.attention.weight.dtype)
            logits = logits + self.attention(seen).squeeze(-1).float()
        return logits

    def _heads(self, project: nn.Linear, scale: str, states: Tensor) -> Tensor:
        """``[..., heads, dim]``, fp32."""
        projected: Tensor = project(self.scales[scale](states).to(project.weight.dtype))
        return projected.unflatten(-1, (self.heads, self.dim)).float()

    def _sought(self, key_SHVd: Tensor, query_SHTd: Tensor, real_ST: Tensor) -> Tensor:
        """``[S, V]`` how much any of a block of text tokens looks for each visual token."""
        match_SHVT = key_SHVd @ query_SHTd.transpose(2, 3) + self.offset[:, None, None]
        match_SHVT = match_SHVT.masked_fill(~real_ST[:, None, None], NO_MATCH)
        return match_SHVT.logsumexp((1, 3)).clamp(min=NO_MATCH)
