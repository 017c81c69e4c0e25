"""Average normalised Levenshtein similarity."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning.metrics.text import AnswerMetric, edit_distance


def anls(prediction: str, references: Sequence[str]) -> float:
    """``1 - min_j distance_j / max(lengths)``, and 0 where that is below 0.5.

    Biten et al., arXiv 1905.13648, as lmms-eval computes it: the distance is that of lower-cased texts with single
    spaces, but the lengths are those of the raw strings.
    """
    return max(_similarity(prediction, reference) for reference in references)


def _similarity(prediction: str, reference: str) -> float:
    length = max(len(prediction), len(reference))
    if length == 0:
        return 1.0
    distance = edit_distance(" ".join(prediction.lower().split()), " ".join(reference.lower().split()))
    similarity = 1 - distance / length
    return similarity if similarity >= 0.5 else 0.0


class ANLS(AnswerMetric):
    """Mean normalised Levenshtein similarity (DocVQA, InfographicVQA); see :func:`anls`."""

    score = staticmethod(anls)
