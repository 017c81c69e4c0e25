"""Relaxed accuracy of ChartQA."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning.metrics.text import AnswerMetric, number

TOLERANCE = 0.05


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """1 if a number is within 5 % of the reference, or a text equals it up to case; else 0.

    Masry et al., arXiv 2203.10244, as lmms-eval computes it: percentages count as hundredths; if the reference is 0 or
    one of the two is no number, the texts are compared. One repair: spaces at the ends are ignored, while lmms-eval
    takes ``"50% "`` for no number.
    """
    return float(any(_matches(prediction.strip(), reference.strip()) for reference in references))


def _matches(prediction: str, reference: str) -> bool:
    value, target = number(prediction), number(reference)
    if value is not None and target:
        return abs(value - target) / abs(target) <= TOLERANCE
    return prediction.lower() == reference.lower()


class RelaxedAccuracy(AnswerMetric):
    """Share of answers within 5 % (ChartQA); see :func:`relaxed_accuracy`."""

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Score of one answer."""
        return relaxed_accuracy(prediction, references)
