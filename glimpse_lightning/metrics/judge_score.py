"""Score of Visual-CoT's judge."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from glimpse_lightning.metrics.base import BaseMetric
from glimpse_lightning.metrics.running_mean import UNITS

VISUAL_COT_SETS = (
    "cub", "docvqa", "dude", "flickr30k", "gqa", "infographicsvqa", "openimages", "sroie", "textcap", "textvqa",
    "visual7w", "vsr",
)  # fmt: skip
"""The benchmark's twelve sets over which the paper averages."""

_SCORE = re.compile(r"score: ([\d.]+)")


def judge_score(reply: str) -> float:
    """The score in [0, 1] in a judge's reply, written as ``score: 0.8``.

    Upstream's ``cal_cot_score.py``: case is ignored; no score or several scores give 0; scores above 1 count as 1. One
    repair: a malformed number (``score: 0.8.``) is read up to its second period, and gives 0 if no number is left.
    Upstream stops with an error there.
    """
    found = _SCORE.findall(reply.lower())
    if len(found) != 1:
        return 0.0
    number = re.match(r"\d+\.?\d*|\.\d+", found[0])
    return min(1.0, float(number[0])) if number else 0.0


class JudgeScore(BaseMetric):
    """Mean score of each set, and ``score``, the unweighted mean over the sets with replies.

    Args:
        sets: names of the sets.
    """

    total: Tensor
    count: Tensor

    def __init__(self, sets: Sequence[str] = VISUAL_COT_SETS, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.sets = tuple(sets)
        self.add_state("total", torch.zeros(len(self.sets), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(self.sets), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, replies: Sequence[str], sets: Sequence[str]) -> None:
        """Add the judge's reply to each answer, and the set of each question.

        Raises:
            ValueError: for a set that is not among ``sets`` of the metric.
        """
        if unknown := sorted(set(sets) - set(self.sets)):
            raise ValueError(f"Expected sets out of {', '.join(self.sets)}, but got {unknown[0]!r}.")
        if len(replies) != len(sets):
            raise ValueError(f"Expected a set for each reply, but got {len(sets)} and {len(replies)}.")
        place = torch.tensor([self.sets.index(name) for name in sets], dtype=torch.int64, device=self.device)
        scores = torch.tensor([judge_score(reply) for reply in replies], dtype=torch.float64, device=self.device)
        self.total.index_add_(0, place, (scores * UNITS).round().long())
        self.count.index_add_(0, place, torch.ones_like(place))

    def compute(self) -> dict[str, Tensor]:
        """``score`` and the mean of every set with replies, in [0, 1], fp32; ``score`` is 0 before the first reply."""
        means = self.total.double() / UNITS / self.count.clamp(min=1)
        seen = self.count > 0
        score = means[seen].sum() / seen.sum().clamp(min=1)
        own = {name: means[i].float() for i, name in enumerate(self.sets) if seen[i]}
        return {"score": score.float(), **own}
