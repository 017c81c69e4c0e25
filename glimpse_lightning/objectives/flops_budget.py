"""Expected FLOPs of a prefill, as a differentiable function of the stages' keep probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimpse_lightning.core.segments import segment_sum
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.objectives.losses import mean_of_pruned


def flops_share(
    keep: Sequence[Tensor],
    after_layers: Sequence[int],
    tokens: VisualTokens,
    text: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """FLOPs of the decoder's layers in prefill as a share of the unpruned ones, averaged over samples with images.

    ``sum_l C(v_l + t) / (L C(v + t))`` as in ``token_counts.flops_ratio``, with ``v_l`` the expected number of visual
    tokens in layer ``l``: the sum, over all ``v`` tokens, of the product of the gates of the stages before that layer.
    ``C`` has a term in the square of the length, whose expectation is approximated by the square of the expected
    length, since the variance of a sum of many independent gates is small in comparison.

    Args:
        keep: for each stage, ``[V]`` in [0, 1]: the probability that a token that gets there stays.
        after_layers: each stage's ``after_layer``.
        tokens: all visual tokens of the batch.
        text: ``[S]`` other tokens of each prompt.
        weight: ``[S]`` weights of the samples; by default all are equal.
    """
    facts = tokens.facts
    group, total = tokens.groups()
    visual = total.to(torch.float32)
    left, open_V = visual, torch.ones_like(group, dtype=torch.float32)
    waiting = list(zip(after_layers, keep, strict=True))
    spent = torch.zeros_like(visual)
    for layer in range(facts.num_layers):
        while waiting and waiting[0][0] < layer:
            open_V = open_V * waiting.pop(0)[1]
            left = segment_sum(open_V, group, len(total))
        spent = spent + facts.layer_flops(left + text)
    share = spent / (facts.num_layers * facts.layer_flops(visual + text))
    return mean_of_pruned(share, total, weight)
