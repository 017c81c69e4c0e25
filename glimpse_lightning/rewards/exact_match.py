"""Exact match, as a reward."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning import metrics


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 on a match, else 0, also without references; see :func:`glimpse_lightning.metrics.exact_match.exact_match`."""
    return metrics.exact_match.exact_match(answer, references) if references else 0.0
