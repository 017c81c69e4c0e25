"""Base class of scorers, and the requests for attention, vision states and text that a component makes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from glimpse_lightning.core.layers import Layered
from glimpse_lightning.core.visual_tokens import ModelFacts, VisionTap, VisualTokens
from glimpse_lightning.scorers.glimpse_tokens import GlimpseTokens

UNSEEN = math.log(torch.finfo(torch.float32).tiny)
"""Log of the attention weight of a token that a row does not see; finite, so that sums and means stay finite."""
OUT_OF_SIGHT = -20.0
"""Feature of a token that a row does not see: less than any likely one, and no outlier for a network."""


@dataclass(frozen=True)
class AttentionProbe:
    """One attention row per sample, captured on the way without an attention map.

    Attributes:
        layers: 0-based decoder layers, each at most the stage's ``after_layer``; captured in this order.
        query: the row of the attention map: ``"last"`` = the last prompt token, ``"glimpse"`` = the scorer's last
            glimpse token, ``"text"`` = the mean weights of the text tokens after the first visual token that
            ``Scorer.raters`` chooses; not available as ``logits``.
        scale: ``"logits"`` = ``q.k / sqrt(head_dim)``; ``"log_softmax"`` = natural log of the attention weights over
            all (unpadded) keys that the row sees, text included, and ``UNSEEN`` for the others; ``"information"`` (text
            rows only) = the mutual information in nats of text and visual token under each head's weights, divided by
            the number of text tokens; the same number for all visual tokens of a sample.

    Examples:
        >>> class LastToken(gl.Scorer):  # attention from the last prompt token in layer 2, mean of the heads
        ...     @property
        ...     def requires(self):
        ...         return gl.Requires(probes={"row": gl.AttentionProbe(layers=(2,), scale="log_softmax")})
        ...     def forward(self, tokens):
        ...         return tokens.probes["row"].exp().mean(1)
        >>> LastToken().requires.probes["row"].query
        'last'
    """

    layers: tuple[int, ...]
    query: Literal["last", "glimpse", "text"] = "last"
    scale: Literal["logits", "log_softmax", "information"] = "logits"

    def __post_init__(self) -> None:
        if self.query == "text" and self.scale == "logits":
            raise ValueError("Expected scale 'log_softmax' or 'information' of a probe of text rows, but got 'logits'.")
        if self.query != "text" and self.scale == "information":
            raise ValueError(f"Expected query 'text' of a probe of scale 'information', but got {self.query!r}.")


@dataclass(frozen=True)
class Requires:
    """Inputs that a scorer, policy or reducer needs besides the states; inputs that no component requires are not
    computed.

    Attributes:
        probes: attention rows by name; delivered as ``tokens.probes[name]`` ``[V, layers * heads]``.
        vision_layers: requests to the vision tower: outputs of blocks by number, ``VisionAttention``, ``VisionKeys``;
            delivered as ``tokens.vision[tap]`` ``[V, Dv]``.
        text: whether ``tokens.text`` (states of the unpadded, non-visual prompt tokens) is delivered.
        text_layers: decoder layers up to the stage after which the states of these tokens are read, -1 = on entering
            layer 0; delivered as ``tokens.text_states[layer]`` ``[T, D]``.
        keys: whether ``tokens.keys`` (decoder keys of the last layer before the stage) is delivered; with ``text``,
            also ``tokens.text_keys``.

    Examples:
        >>> attention, text = gl.Requires(vision_layers=(gl.VisionAttention(-1),)), gl.Requires(text=True)
        >>> (attention | text).text
        True
    """

    probes: Mapping[str, AttentionProbe] = field(default_factory=dict)
    vision_layers: tuple[VisionTap, ...] = ()
    text: bool = False
    keys: bool = False
    text_layers: tuple[int, ...] = ()

    def __or__(self, other: Requires) -> Requires:
        """The requirements of both."""
        return Requires(
            probes={**self.probes, **other.probes},
            vision_layers=tuple(dict.fromkeys((*self.vision_layers, *other.vision_layers))),
            text=self.text or other.text,
            keys=self.keys or other.keys,
            text_layers=tuple(dict.fromkeys((*self.text_layers, *other.text_layers))),
        )


def in_sight(log_weights: Tensor) -> Tensor:
    """Log attention weights as features of a network: :data:`OUT_OF_SIGHT` where the weight is 0."""
    return log_weights.masked_fill(log_weights < UNSEEN + 1, OUT_OF_SIGHT)


class Scorer(Layered, nn.Module, ABC):
    """Gives every visual token a score.

    A subclass names the kind of its scores in its docstring: logits of learned scorers (keep = sigmoid > threshold),
    log-probabilities of attention scorers, or numbers whose order alone has a meaning. A higher score is kept first.

    Examples:
        >>> class Top(gl.Scorer):  # rows from the top of the image to its bottom
        ...     def forward(self, tokens):
        ...         return -tokens.position[:, 1].float()
        >>> stage = gl.PruneStage(after_layer=1, scorer=Top(), policy=gl.policies.TopK(16))
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
        >>> model.prefill(**batch.inputs).keep[0].nonzero()[:, 0].tolist()  # the first row of 16 x 16 tokens
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    """

    glimpse: GlimpseTokens | None
    """Glimpse tokens that run next to the prompt up to the stage; ``None`` for most scorers."""
    shares_glimpse: bool = False
    """Whether the scorer's glimpse probes read the glimpse tokens of an earlier stage, which then run on to this stage.
    """
    heeds_gates: bool = False
    """Whether the scorer uses ``state[LOG_GATES]``, so that closed tokens do not change the scores of open ones. If
    false, the engine scores the open tokens in a second call, in which a half-open token counts as an open one.
    """

    def __init__(self) -> None:
        super().__init__()
        # Not a class attribute: it would hide a submodule `glimpse` that a subclass registers.
        self.glimpse = None

    def build(self, facts: ModelFacts, after_layer: int) -> None:
        """Create parameters and layers whose sizes depend on the model; called once, when the scorer is attached to a
        model at a stage. The default does nothing.

        Args:
            facts: sizes of the model.
            after_layer: 0-based index of the last layer before the stage; -1 = before layer 0.

        Raises:
            ValueError: if the scorer cannot work on this model or at this stage.
        """

    @property
    def requires(self) -> Requires:
        """Inputs that the scorer needs, none by default; valid after :meth:`build`."""
        return Requires()

    def raters(self, tokens: VisualTokens) -> Tensor:
        """Boolean ``[T]``: the text tokens whose attention a probe with ``query="text"`` reads; all by default.

        Args:
            tokens: visual tokens before layer 0; ``text`` holds the text tokens after the first visual token of each
                sample.
        """
        assert tokens.text_sample is not None
        return torch.ones_like(tokens.text_sample, dtype=torch.bool)

    @abstractmethod
    def forward(self, tokens: VisualTokens) -> Tensor:
        """Scores ``[V]``, floating point; ``V`` may be 0."""
