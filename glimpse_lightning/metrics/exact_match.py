"""Exact match."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning.metrics.text import AnswerMetric, normalize


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the prediction equals a reference, up to case, spaces and punctuation at the ends; else 0.

    GQA's rule in lmms-eval, for several references.
    """
    return float(normalize(prediction) in {normalize(reference) for reference in references})


class ExactMatch(AnswerMetric):
    """Share of answers that equal one of their references; see :func:`exact_match`."""

    score = staticmethod(exact_match)
