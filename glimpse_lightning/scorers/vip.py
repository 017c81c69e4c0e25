"""GlimpsePrune's visual importance predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from glimpse_lightning.core.blocks import InBlock, check_keys
from glimpse_lightning.core.layers import Layer, checked, reached
from glimpse_lightning.core.segments import Padding
from glimpse_lightning.core.token_places import index_in_item
from glimpse_lightning.core.visual_tokens import LOG_GATES, ModelFacts, VisualTokens
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import AttentionProbe, Requires, Scorer, in_sight
from glimpse_lightning.scorers.glimpse_tokens import GlimpseTokens
from glimpse_lightning.scorers.upstream_options import UpstreamOptions
from glimpse_lightning.scorers.vip_network import Standardise, VIPNetwork, rotary_2d

Query = Literal["glimpse", "last", "text"]
QUERIES: tuple[Query, ...] = ("glimpse", "last", "text")
"""Whose attention VIP can read."""

CERTAIN = 1e4
"""Logit whose sigmoid is exactly 1."""

REFERENCE_MASKS = "reference_masks"
"""Key of ``VisualTokens.state`` under which VIP with ``masks="reference"`` finds its masks: a boolean or a probability
for each visual token, as one tensor of any shape per image, in the order of the prompts."""


class VIP(Scorer):
    """Importance **logits** predicted from a glimpse token's attention and the vision tower's states.

    GlimpsePrune (arXiv 2508.01548): a learned glimpse token reads the prompt; its attention to each visual token, head
    by head, is fused with states of the vision tower by a few layers of self-attention within each image. A token is
    important where sigmoid(logit) is above a threshold. Defaults are the published Qwen2.5-VL configuration. Layers and
    blocks are given by number or as a share of the depth.

    Args:
        vision_layers: vision blocks that condition the layers, one layer each, in this order; ``None``: four blocks
            evenly spread, deepest first (31, 23, 15, 7 of 32).
        attention_layers: decoder layers whose attention is read; ``None``: the stage's ``after_layer``; ``"all"``: that
            one and all before it.
        attention: ``"logits"``: ``q.k / sqrt(head_dim)``; ``"log_softmax"``: log of the attention weights (LLaVA).
        attention_dim: width of the fused features.
        condition_dim: width that vision states are projected to.
        heads: attention heads of the predictor.
        glimpse_scale: size of the glimpse token's vectors at the start; see :class:`GlimpseTokens`.
        dropout: dropout of these vectors, in training.
        shares_glimpse: read the glimpse token of an earlier stage, which runs on to this one, and have none of its own;
            the other glimpse arguments then count for nothing.
        query: whose attention is read: the ``"glimpse"`` token's, as in the paper; the ``"last"`` prompt token's, which
            was trained to look for the answer; or, on average, that of the ``"text"`` tokens after the first image,
            which looks for what each of them is about (log of the mean weights, whatever ``attention`` says). Several
            of them as a list; ``"both"`` is short for ``["glimpse", "last"]``. Without ``"glimpse"`` there is no
            glimpse token.
        vision_condition: whether vision states condition the layers; if not, as many layers run without them.
        rotary: whether the layers know where in the image a token lies.
        fusion: whether the layers run at all; if not, a logit is linear in a token's attention, head by head.
        standardise: whether attention and vision states are brought to mean 0 and variance 1, feature by feature, as
            measured on the first batch of a training (the reference does not). Models whose states are large drive
            untrained logits far from 0, where their sigmoid passes no gradient; logits then also start at exactly 0.
        upstream: options that only imported pruners set; by default those of the published Qwen2.5-VL pruner.
        **keys: options of :class:`UpstreamOptions`, which stood here before there was ``upstream``; read until 0.4.

    Attributes:
        queries: whose attention is read, in the order of the features.
        upstream: the options; each is an attribute of the scorer, too.
    """

    network: VIPNetwork
    heeds_gates = True
    window = InBlock("upstream")
    deep_supervision = InBlock("upstream")
    glimpse_length = InBlock("upstream")
    glimpse_layers = InBlock("upstream")
    glimpse_norm = InBlock("upstream")
    masks = InBlock("upstream")
    activation = InBlock("upstream")
    layer_arguments = {"vision_layers": "vision", "attention_layers": "decoder", "glimpse_layers": "decoder"}

    def __init__(
        self,
        vision_layers: Sequence[Layer] | None = None,
        attention_layers: Sequence[Layer] | Literal["all"] | None = None,
        attention: Literal["logits", "log_softmax"] = "logits",
        attention_dim: int = 256,
        condition_dim: int = 512,
        heads: int = 4,
        glimpse_scale: float = 1.0,
        dropout: float = 0.1,
        shares_glimpse: bool = False,
        query: Query | Literal["both"] | Sequence[Query] = "glimpse",
        vision_condition: bool = True,
        rotary: bool = True,
        fusion: bool = True,
        standardise: bool = False,
        upstream: UpstreamOptions | None = None,
        **keys: Any,
    ) -> None:
        check_keys(self, keys)
        super().__init__()
        named: Any = ("glimpse", "last") if query == "both" else (query,) if isinstance(query, str) else query
        self.queries: tuple[Query, ...] = tuple(named)
        if not self.queries or len({*self.queries}) < len(self.queries) or not {*self.queries} <= {*QUERIES}:
            raise ValueError(
                f"Expected `query` to be {', '.join(map(repr, QUERIES))}, several or 'both'; got {query!r}."
            )
        if attention_dim % heads or (attention_dim + condition_dim) % (4 * heads):
            raise ValueError(
                f"Expected `attention_dim` to be divisible by `heads` = {heads}, and `attention_dim + condition_dim` "
                f"by {4 * heads} (2-D rotary embedding of each head), but got {attention_dim} and {condition_dim}."
            )
        if shares_glimpse and "glimpse" not in self.queries:
            raise ValueError(f"Expected `query` to name 'glimpse' with `shares_glimpse`, but got {query!r}.")
        self.vision_layers: Sequence[int] | None = checked("vision_layers", vision_layers)
        self.attention_layers: Sequence[int] | Literal["all"] | None = checked("attention_layers", attention_layers)
        self.attention = attention
        self.attention_dim = attention_dim
        self.condition_dim = condition_dim
        self.heads = heads
        self.glimpse_scale = glimpse_scale
        self.dropout = dropout
        self.shares_glimpse = shares_glimpse
        self.query = query if isinstance(query, str) else list(query)
        self.vision_condition = vision_condition
        self.rotary = rotary
        self.fusion = fusion
        self.standardise = standardise
        self.upstream = UpstreamOptions.of(upstream, **keys)
        self.attended: tuple[int, ...] = ()
        self.conditions: tuple[int, ...] = ()

    def build(self, facts: ModelFacts, after_layer: int) -> None:
        last = min(after_layer, facts.num_layers - 1)
        layers = range(last + 1) if self.attention_layers == "all" else self.attention_layers or (last,)
        self.attended = _checked_layers(layers, last)
        self.conditions = _vision_layers(self.vision_layers, facts)
        features = len(self.queries) * len(self.attended) * facts.num_heads
        self.network = VIPNetwork(
            features=features,
            vision_dim=facts.vision_hidden_size,
            conditions=len(self.conditions),
            dim=self.attention_dim,
            condition_dim=self.condition_dim,
            heads=self.heads,
            deep_supervision=self.upstream.deep_supervision,
            fusion=self.fusion,
            activation=self.upstream.activation,
        )
        if self.standardise:
            self.network.start_at_zero()
            self.scales = nn.ModuleDict({"attention": Standardise(features)})
            if self.requires.vision_layers:
                self.scales["vision"] = Standardise(len(self.conditions) * facts.vision_hidden_size)
        if "glimpse" not in self.queries or self.shares_glimpse:
            return
        glimpse_layers = range(facts.num_layers) if self.glimpse_layers is None else self.glimpse_layers
        if not set(glimpse_layers) <= set(range(facts.num_layers)):
            raise GlimpseError(
                f"Expected `glimpse_layers` to lie among the model's {facts.num_layers} decoder layers (0 to "
                f"{facts.num_layers - 1}), but got {list(glimpse_layers)}."
            )
        self.glimpse = GlimpseTokens(
            hidden_size=facts.hidden_size,
            layers=glimpse_layers,
            length=self.upstream.glimpse_length,
            norm=self.upstream.glimpse_norm,
            eps=facts.rms_norm_eps,
            dropout=self.dropout,
            scale=self.glimpse_scale,
        )

    @property
    def requires(self) -> Requires:
        if self.upstream.masks != "predicted":
            return Requires()
        probes: dict[str, AttentionProbe] = {
            query: AttentionProbe(layers=self.attended, query=query, scale=self._scale(query)) for query in self.queries
        }
        conditioned = self.vision_condition and self.fusion
        return Requires(probes=probes, vision_layers=self.conditions if conditioned else ())

    def _scale(self, query: Query) -> Literal["logits", "log_softmax"]:
        return "log_softmax" if query == "text" else self.attention

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Logits ``[V]``."""
        return self.forward_rows(tokens)[-1]

    def forward_rows(self, tokens: VisualTokens) -> Tensor:
        """Logits of every output head ``[rows, V]``: one, or one per layer with deep supervision; the last counts."""
        if self.upstream.masks != "predicted":
            return self._given(tokens)[None]
        dtype = self.network.attn_in_proj.weight.dtype
        attention = torch.cat([self._row(query, tokens.probes[query]) for query in self.queries], -1)
        conditions = self._conditions(tokens)
        if self.standardise:
            attention = self.scales["attention"](attention)
            if "vision" in self.scales:
                conditions = list(self.scales["vision"](torch.cat(conditions, -1)).chunk(len(conditions), -1))
        rows = self.network(
            attention.to(dtype),
            [condition.to(dtype) for condition in conditions],
            self._angles(tokens),
            Padding(self._scope(tokens)),
            tokens.state.get(LOG_GATES),
        )
        return torch.stack(rows)

    def _row(self, query: Query, row: Tensor) -> Tensor:
        """``[V, layers * heads]`` of a query, without the logs of weights that are 0."""
        return in_sight(row) if self._scale(query) == "log_softmax" else row

    def _conditions(self, tokens: VisualTokens) -> list[Tensor]:
        """``[V, vision_dim]`` for each layer; zeros, which leave the projection's bias, where nothing conditions."""
        if self.vision_condition and self.fusion:
            return [tokens.vision[layer] for layer in self.conditions]
        blank = tokens.hidden.new_zeros(len(tokens), tokens.facts.vision_hidden_size)
        return [blank] * (len(self.conditions) if self.fusion else 0)

    def _given(self, tokens: VisualTokens) -> Tensor:
        """Logits ``[V]`` of the caller's masks; finite, so that a policy's floor can still keep a token."""
        if self.upstream.masks == "zero":
            return tokens.hidden.new_full((len(tokens),), -CERTAIN, dtype=torch.float32)
        given = tokens.state.get(REFERENCE_MASKS)
        sizes = tokens.grid.prod(-1)
        flat = torch.cat([mask.float().flatten() for mask in given]) if given is not None else None
        if flat is None or len(flat) != int(sizes.sum()):
            raise GlimpseError(
                f"Expected `reference_masks` with a value for each of the {int(sizes.sum())} visual tokens, image by "
                f"image in the order of the prompt, but got {'none' if flat is None else len(flat)}. Pass them to "
                "`prefill` or `generate` as `state={'reference_masks': [...]}`, or set the scorer's `masks` to "
                "'predicted'."
            )
        index = (sizes.cumsum(0) - sizes)[tokens.item] + index_in_item(tokens)
        return flat.to(index.device)[index].logit().clamp(-CERTAIN, CERTAIN)

    def _angles(self, tokens: VisualTokens) -> Tensor:
        dim = (self.attention_dim + self.condition_dim) // self.heads
        _, row, column = tokens.position.unbind(-1)
        return rotary_2d(row, column, dim) if self.rotary else row.new_zeros(len(row), dim, dtype=torch.float32)

    def _scope(self, tokens: VisualTokens) -> Tensor:
        """Label ``[V]`` of the set of tokens that see each other: an image's temporal slice, or a window of it."""
        t, row, column = tokens.position.unbind(-1)
        label = tokens.item * 2**20 + t
        if self.upstream.window is None:
            return label
        # 2^20 slices per item and 2^12 windows per side are beyond any input, and fit an int64 together.
        return (label * 2**12 + row // self.upstream.window) * 2**12 + column // self.upstream.window


def _checked_layers(layers: Sequence[int], after_layer: int) -> tuple[int, ...]:
    if after_layer < 0:
        raise GlimpseError(
            f"Expected `after_layer` to be at least 0 for VIP, which reads decoder attention, but got {after_layer}. "
            "Set `after_layer` to the layer to prune after, or use a scorer that needs no attention."
        )
    return reached("attention_layers", layers, after_layer)


def _vision_layers(layers: Sequence[int] | None, facts: ModelFacts) -> tuple[int, ...]:
    depth = facts.vision_layers
    if layers is not None and not depth:  # unknown: LLaVA checkpoints of the reference do not tell
        return tuple(layers)
    if layers is None:
        count = min(4, depth)
        return tuple(depth - 1 - i * (depth // count) for i in range(count))
    if not layers or min(layers) < 0 or max(layers) >= depth:
        raise GlimpseError(
            f"Expected `vision_layers` to name at least one of the {depth} blocks of this model's vision tower "
            f"(0 to {depth - 1}), but got {list(layers)}."
        )
    return tuple(layers)
