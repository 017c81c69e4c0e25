"""Average normalised Levenshtein similarity, as a reward."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning import metrics


def anls(answer: str, references: Sequence[str]) -> float:
    """In [0, 1]; see :func:`glimpse_lightning.metrics.anls.anls`. 0 for a question without references."""
    return metrics.anls.anls(answer, references) if references else 0.0
