"""What a prefill is expected to cost, as a differentiable function of how open the stages' tokens are."""

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
    tokens in layer ``l``: of the ``v`` that there are, the sum of the product of the gates of all stages before it.
    ``C`` has a term in the square of the length, whose expectation is taken to be the square of the expectation; the
    variance of a sum of many independent gates is small beside it.

    Args:
        keep: for each stage, ``[V]`` in [0, 1]: the probability that a token that gets there stays.
        after_layers: of each stage.
        tokens: all visual tokens of the batch.
        text: ``[S]`` other tokens of each prompt.
        weight: ``[S]`` of the samples; default: equal ones.
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
