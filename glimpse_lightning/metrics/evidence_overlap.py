"""Overlap of the kept tokens with the evidence."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.core.segments import segment_count
from glimpse_lightning.metrics.running_mean import RunningMean


def evidence_overlap(keep: Tensor, evidence: Tensor, sample: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Overlap of kept tokens with evidence tokens, sample by sample.

    Args:
        keep, evidence: kept tokens and evidence tokens, boolean ``[V]``.
        sample: sample of each token, ``[V]``.
        num_samples: number of samples ``S``.

    Returns:
        ``(figures [S, 3], counts [S])``: recall, precision (0 if no token is kept) and intersection over union, in
        float64; and whether the sample counts, that is, has an evidence token.
    """
    both = segment_count(sample, num_samples, keep & evidence).double()
    kept = segment_count(sample, num_samples, keep).double()
    there = segment_count(sample, num_samples, evidence).double()
    recall, precision = both / there.clamp(min=1), both / kept.clamp(min=1)
    return torch.stack([recall, precision, both / (kept + there - both).clamp(min=1)], dim=1), there > 0


class EvidenceOverlap(RunningMean):
    """Recall, precision and IoU of kept tokens with the tokens that evidence boxes touch, each a mean over samples.

    Samples without evidence do not count.
    """

    figures = ("recall", "precision", "iou")

    def update(self, keep: Tensor, evidence: Tensor, sample: Tensor, num_samples: int) -> None:
        """Add a batch; arguments as in :func:`evidence_overlap`."""
        overlap, counts = evidence_overlap(keep, evidence, sample, num_samples)
        self.add(overlap[counts])
