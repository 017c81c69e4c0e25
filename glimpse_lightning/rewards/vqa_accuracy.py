"""Accuracy of the VQA challenge, as a reward."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning import metrics


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """In [0, 1]; see :class:`glimpse_lightning.metrics.VQAAccuracy`. 0 for a question without references."""
    return metrics.vqa_accuracy.vqa_accuracy(answer, references) if references else 0.0
