"""Average normalised Levenshtein similarity, as a reward."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning import metrics


def anls(answer: str, references: Sequence[str]) -> float:
    """ANLS in [0, 1], 0 for a question without references; see :func:`glimpse_lightning.metrics.anls.anls`."""
    return metrics.anls.anls(answer, references) if references else 0.0
