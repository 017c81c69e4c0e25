"""What pruning saves, counted in the four ways that papers mean by "tokens kept"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glimpse_lightning.metrics.running_mean import RunningMean
from glimpse_lightning.segments import segment_count
from glimpse_lightning.visual_tokens import ModelFacts

WAYS = ("entering", "layer_mean", "decoding", "flops")


def token_counts(
    keep: Sequence[Tensor], after_layers: Sequence[int], sample: Tensor, text: Tensor, facts: ModelFacts
) -> Tensor:
    """``[S, 4]`` visual tokens of each sample that are left, as shares of those there were, in four ways; float64.

    * entering: tokens that the first decoder layer sees;
    * layer mean: tokens a layer sees in prefill, mean over layers;
    * decoding: tokens in the key-value cache when decoding starts (compacted in all layers);
    * FLOPs: of the decoder's prefill with text and visual tokens, over the full model's: ``sum_l C(t + v_l) / (L C(t +
      v))`` with ``C`` of :meth:`ModelFacts.layer_flops`; encoder, scorer and output head left out. (Upstream's
      ``cal_flops.py`` leaves the text out of the pruned layers as well, and so claims more.)

    Samples without visual tokens get NaN in the first three.

    Args:
        keep: of each prune stage, boolean ``[V]`` over all tokens of the batch.
        after_layers: of each stage, in order.
        sample: ``[V]``.
        text: ``[S]`` text tokens of each sample's prompt.
        facts: shape of the decoder.
    """
    num_samples, layers = len(text), facts.num_layers
    alive = torch.ones_like(sample, dtype=torch.bool)
    total = segment_count(sample, num_samples, alive).double()
    per_layer = []
    stages = list(zip(after_layers, keep, strict=True))
    for layer in range(layers):
        while stages and stages[0][0] < layer:
            alive = alive & stages.pop(0)[1]
        per_layer.append(segment_count(sample, num_samples, alive).double())
    for _, mask in stages:
        alive = alive & mask
    seen = torch.stack(per_layer, dim=1)
    lengths = [(seen + text.double()[:, None]).tolist(), (total + text.double()).tolist()]
    flops = [sum(map(facts.layer_flops, row)) for row in lengths[0]]
    full = [layers * facts.layer_flops(length) for length in lengths[1]]
    share = torch.tensor([part / whole if whole else torch.nan for part, whole in zip(flops, full, strict=True)])
    decoding = segment_count(sample, num_samples, alive).double()
    shares = torch.stack([seen[:, 0] / total, seen.mean(1) / total, decoding / total], dim=1)
    return torch.cat([shares, share.to(shares)[:, None]], dim=1)


class TokenCounts(RunningMean):
    """Means over samples of the four shares of :func:`token_counts`; samples without visual tokens do not count."""

    higher_is_better = False
    figures = WAYS

    def update(
        self, keep: Sequence[Tensor], after_layers: Sequence[int], sample: Tensor, text: Tensor, facts: ModelFacts
    ) -> None:
        """Add a batch; arguments as of :func:`token_counts`."""
        counts = token_counts(keep, after_layers, sample, text, facts)
        self.add(counts[~counts.isnan().any(1)])
