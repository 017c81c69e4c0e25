"""Scores brought to scales that keep rules compute with, group by group."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.core.segments import segment_max


def weights(scores: Tensor, scale: str, group: Tensor, num_groups: int) -> Tensor:
    """``[V]`` weights of ``scores [V]``: the scores (``scale = "raw"``), or their exponentials (``"log"``).

    Of logarithms, up to a factor per group: the largest weight of a group is 1.
    """
    scores = scores.detach().float()
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    if scale == "raw":
        return scores
    return (scores - segment_max(scores, group, num_groups)[group]).exp()


def min_max(values: Tensor, group: Tensor, num_groups: int, epsilon: float = 0.0) -> Tensor:
    """``(v - min + epsilon) / (max - min)`` per group: ``[V]``; 1 where all values are equal, 0 at ``-inf``."""
    finite = ~values.isinf()
    top = segment_max(values, group, num_groups)[group]
    low = -segment_max(torch.where(finite, -values, -torch.inf), group, num_groups)[group]
    width = top - low
    scaled = (values - low + epsilon) / torch.where(width > 0, width, 1.0)
    return torch.where(finite, torch.where(width > 0, scaled, 1.0), 0.0)
