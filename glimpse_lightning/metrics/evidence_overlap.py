"""How well the kept tokens cover the evidence."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from glimpse_lightning.segments import segment_count


def evidence_overlap(keep: Tensor, evidence: Tensor, sample: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Overlap of kept tokens with evidence tokens, sample by sample.

    Args:
        keep, evidence: boolean ``[V]``.
        sample: ``[V]``.
        num_samples: ``S``.

    Returns:
        ``(figures [S, 3], counts [S])``: recall, precision (0 where nothing is kept) and intersection over union, in
        float64; and whether the sample counts, that is, has any evidence token.
    """
    both = segment_count(sample, num_samples, keep & evidence).double()
    kept = segment_count(sample, num_samples, keep).double()
    there = segment_count(sample, num_samples, evidence).double()
    recall, precision = both / there.clamp(min=1), both / kept.clamp(min=1)
    return torch.stack([recall, precision, both / (kept + there - both).clamp(min=1)], dim=1), there > 0


class EvidenceOverlap(Metric):
    """Recall, precision and IoU of kept tokens with the tokens that evidence boxes touch, each a mean over samples.

    Samples without evidence do not count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, keep: Tensor, evidence: Tensor, sample: Tensor, num_samples: int) -> None:
        """Add a batch; arguments as of :func:`evidence_overlap`."""
        figures, counts = evidence_overlap(keep, evidence, sample, num_samples)
        self.total += figures[counts].sum(0)
        self.count += counts.sum()

    def compute(self) -> dict[str, Tensor]:
        """``recall``, ``precision`` and ``iou`` in [0, 1], fp32; 0 before the first sample."""
        mean = (self.total / self.count.clamp(min=1)).float()
        return dict(zip(("recall", "precision", "iou"), mean, strict=True))
