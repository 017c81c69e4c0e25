"""How many visual tokens a question costs, counted in the four ways that papers mean by "tokens kept"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glimpse_lightning.visual_tokens import ModelFacts


@dataclass(frozen=True)
class TokenCounts:
    """Visual tokens of one question.

    Attributes:
        entering: tokens that enter the language model's layer 0 (what methods that prune before it report).
        layer_mean: tokens that a layer runs on in prefill, averaged over the layers (what FastV's and PyramidDrop's
            "average tokens" mean).
        kv: tokens whose keys and values decoding sees; alike in all layers, as stages compact the whole cache.
        flops: FLOPs of the decoder's layers in prefill, as a share of those without pruning; see :func:`flops_ratio`.
    """

    entering: int
    layer_mean: float
    kv: int
    flops: float


def count_tokens(total: int, text: int, stages: Sequence[tuple[int, int]], facts: ModelFacts) -> TokenCounts:
    """Count a question's visual tokens.

    Args:
        total: visual tokens there are.
        text: all other tokens of the prompt.
        stages: of each prune stage, in order: its ``after_layer``, and the visual tokens left behind it.
        facts: of the model.
    """
    layers = tokens_per_layer(total, stages, facts.num_layers)
    kv = stages[-1][1] if stages else total
    return TokenCounts(layers[0], sum(layers) / len(layers), kv, flops_ratio(layers, total, text, facts))


def tokens_per_layer(total: int, stages: Sequence[tuple[int, int]], num_layers: int) -> list[int]:
    """Visual tokens that each layer runs on: layer ``l`` sees what stages with ``after_layer < l`` have left."""
    left = total
    waiting, layers = list(stages), []
    for layer in range(num_layers):
        while waiting and waiting[0][0] < layer:
            left = waiting.pop(0)[1]
        layers.append(left)
    return layers


def flops_ratio(layers: Sequence[int], total: int, text: int, facts: ModelFacts) -> float:
    """``sum_l C(v_l + t) / (L C(v + t))``: the decoder's prefill, pruned against full.

    ``C`` is :meth:`ModelFacts.layer_flops`; ``v_l`` visual tokens in layer ``l``, ``v`` all, ``t`` text tokens, ``L``
    layers. Source: GlimpsePrune (arXiv 2508.01548) and its ``cal_flops.py``, with the text tokens that it leaves out.
    Not counted on either side: vision tower, embedding, language-model head, norms, decoding. The pruner's own cost is
    not counted either.
    """
    full = len(layers) * facts.layer_flops(total + text)
    return sum(facts.layer_flops(visual + text) for visual in layers) / full if full else 1.0
