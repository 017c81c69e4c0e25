"""Shares of tokens and FLOPs after pruning, in the four ways that papers mean by "tokens kept"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimpse_lightning.core.segments import segment_count
from glimpse_lightning.core.token_counts import StageTokens, count_tokens
from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.metrics.running_mean import RunningMean

WAYS = ("entering", "layer_mean", "decoding", "flops")


def token_counts(
    keep: Sequence[Tensor],
    after_layers: Sequence[int],
    sample: Tensor,
    text: Tensor,
    facts: ModelFacts,
    early_kv: Sequence[str] | None = None,
) -> Tensor:
    """``[S, 4]`` shares of each sample's visual tokens that are left, counted in four ways; float64.

    The counts are those of :func:`glimpse_lightning.core.token_counts.count_tokens`: tokens that the first decoder
    layer sees; tokens that a layer sees in prefill, mean over layers; tokens in the key-value cache when decoding
    starts, mean over layers; FLOPs of the decoder's prefill, text included. (Upstream's ``cal_flops.py`` leaves the
    text out of the pruned layers, and so reports a larger saving.) Samples without visual tokens get NaN in the first
    three.

    Args:
        keep: mask of each prune stage, boolean ``[V]`` over all tokens of the batch.
        after_layers: ``after_layer`` of each stage, in order.
        sample: sample of each token, ``[V]``.
        text: number of text tokens in each sample's prompt, ``[S]``.
        facts: sizes of the decoder.
        early_kv: ``prune`` or ``keep`` for each stage; default: all prune.
    """
    early_kv = ["prune"] * len(after_layers) if early_kv is None else early_kv
    alive = torch.ones_like(sample, dtype=torch.bool)
    left = [segment_count(sample, len(text), alive).tolist()]
    for mask in keep:
        alive = alive & mask
        left.append(segment_count(sample, len(text), alive).tolist())
    rows = []
    for index, words in enumerate(text.tolist()):
        total, *after = (counts[index] for counts in left)
        stages = [StageTokens(*stage) for stage in zip(after_layers, after, early_kv, strict=True)]
        counts = count_tokens(total, words, stages, facts)
        whole = total or torch.nan
        rows.append([counts.entering / whole, counts.layer_mean / whole, counts.kv / whole, counts.flops])
    return torch.tensor(rows, dtype=torch.float64, device=sample.device)


class TokenCounts(RunningMean):
    """Means over samples of the four shares of :func:`token_counts`; samples without visual tokens do not count."""

    higher_is_better = False
    figures = WAYS

    def update(
        self,
        keep: Sequence[Tensor],
        after_layers: Sequence[int],
        sample: Tensor,
        text: Tensor,
        facts: ModelFacts,
        early_kv: Sequence[str] | None = None,
    ) -> None:
        """Add a batch; arguments as in :func:`token_counts`."""
        counts = token_counts(keep, after_layers, sample, text, facts, early_kv)
        self.add(counts[~counts.isnan().any(1)])
