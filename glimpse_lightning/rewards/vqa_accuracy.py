"""Accuracy of the VQA challenge, as a reward."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning import metrics


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Accuracy in [0, 1], 0 for a question without references; see :class:`glimpse_lightning.metrics.VQAAccuracy`."""
    return metrics.vqa_accuracy.vqa_accuracy(answer, references) if references else 0.0
