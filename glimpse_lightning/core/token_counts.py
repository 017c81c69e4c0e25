"""Visual tokens of a question, counted in the four ways that papers mean by "tokens kept"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from glimpse_lightning.core.visual_tokens import ModelFacts


@dataclass(frozen=True)
class SampleCounts:
    """Visual tokens of one question.

    Attributes:
        entering: tokens that enter the language model's layer 0 (reported by methods that prune before it).
        layer_mean: tokens that a layer runs on in prefill, averaged over the layers (the "average tokens" of FastV and
            PyramidDrop).
        kv: tokens whose keys and values decoding sees, averaged over the layers: the tokens kept by the last stage,
            unless a stage leaves the cache of early layers unchanged.
        flops: FLOPs of the decoder's layers in prefill, as a share of those without pruning; see :func:`flops_ratio`.
    """

    entering: int
    layer_mean: float
    kv: float
    flops: float


class StageTokens(NamedTuple):
    """Visual tokens of a question after a prune stage.

    Attributes:
        after_layer: last layer that runs on all tokens.
        left: visual tokens after the stage.
        early_kv: treatment of the cache of layers up to ``after_layer``: unchanged (``keep``), or reduced to the kept
            tokens (``prune``).
    """

    after_layer: int
    left: int
    early_kv: str = "prune"


def count_tokens(total: int, text: int, stages: Sequence[StageTokens], facts: ModelFacts) -> SampleCounts:
    """Count a question's visual tokens.

    Args:
        total: visual tokens before pruning.
        text: all other tokens of the prompt.
        stages: the prune stages, in order.
        facts: sizes of the model.
    """
    layers = tokens_per_layer(total, stages, facts.num_layers)
    kv = sum(cached_per_layer(total, stages, facts.num_layers)) / facts.num_layers
    return SampleCounts(layers[0], sum(layers) / len(layers), kv, flops_ratio(layers, total, text, facts))


def tokens_per_layer(total: int, stages: Sequence[StageTokens], num_layers: int) -> list[int]:
    """Visual tokens that each layer runs on: layer ``l`` sees those kept by stages with ``after_layer < l``."""
    left = total
    waiting, layers = list(stages), []
    for layer in range(num_layers):
        while waiting and waiting[0].after_layer < layer:
            left = waiting.pop(0).left
        layers.append(left)
    return layers


def cached_per_layer(total: int, stages: Sequence[StageTokens], num_layers: int) -> list[int]:
    """Visual tokens whose keys and values each layer's cache holds when decoding starts."""
    left = [total, *(stage.left for stage in stages)]
    return [left[index] for index in stages_passed([(s.after_layer, s.early_kv) for s in stages], num_layers)]


def stages_passed(stages: Sequence[tuple[int, str]], num_layers: int) -> list[int]:
    """Number of stages that have reduced each layer's cache when decoding starts.

    A layer's cache begins with the tokens kept by the stages before it. A later stage with ``early_kv="keep"`` leaves
    it unchanged; any other later stage reduces it to the tokens that it keeps.

    Args:
        stages: ``(after_layer, early_kv)`` of each, in order.
    """
    passed = [sum(after < layer for after, _ in stages) for layer in range(num_layers)]
    for index, (after, early_kv) in enumerate(stages):
        if early_kv == "prune":
            passed = [max(done, index + 1) if layer <= after else done for layer, done in enumerate(passed)]
    return passed


def flops_ratio(layers: Sequence[int], total: int, text: int, facts: ModelFacts) -> float:
    """``sum_l C(v_l + t) / (L C(v + t))``: the decoder's prefill, pruned against full.

    ``C`` is :meth:`ModelFacts.layer_flops`; ``v_l`` visual tokens in layer ``l``, ``v`` all, ``t`` text tokens, ``L``
    layers. Source: GlimpsePrune (arXiv 2508.01548) and its ``cal_flops.py``, with the text tokens that it leaves out.
    Not counted on either side: vision tower, embedding, language-model head, norms, decoding. The pruner's own cost is
    not counted either.
    """
    full = len(layers) * facts.layer_flops(total + text)
    return sum(facts.layer_flops(visual + text) for visual in layers) / full if full else 1.0
