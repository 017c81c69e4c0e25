"""Average normalised Levenshtein similarity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rapidfuzz.distance import Levenshtein

from glimpse_lightning.metrics.text import AnswerMetric

Lengths = Literal["raw", "normalised"]
LENGTHS = ("raw", "normalised")


def anls(prediction: str, references: Sequence[str], lengths: Lengths = "raw") -> float:
    """``1 - min_j distance_j / max(lengths)``, and 0 if that is below 0.5.

    Biten et al., arXiv 1905.13648. The distance is that of lower-cased texts with single spaces.

    Args:
        prediction: the answer.
        references: answers that count as right.
        lengths: strings whose longer length is the divisor: ``raw``, as in lmms-eval (additional spaces raise the
            score, and letters are counted in upper case, in which a German sharp s is two), or ``normalised``, as in
            VLMEvalKit.
    """
    return max(_similarity(prediction, reference, lengths) for reference in references)


def _similarity(prediction: str, reference: str, lengths: Lengths) -> float:
    a, b = " ".join(prediction.lower().split()), " ".join(reference.lower().split())
    length = max(len(prediction.upper()), len(reference.upper())) if lengths == "raw" else max(len(a), len(b))
    if length == 0:
        return 1.0
    similarity = 1 - Levenshtein.distance(a, b) / length
    return similarity if similarity >= 0.5 else 0.0


class ANLS(AnswerMetric):
    """Mean normalised Levenshtein similarity (DocVQA, InfographicVQA); see :func:`anls`.

    Args:
        lengths: strings whose longer length is the divisor: ``raw`` (lmms-eval) or ``normalised`` (VLMEvalKit).
    """

    def __init__(self, lengths: Lengths = "raw", **kwargs: object) -> None:
        super().__init__(**kwargs)
        if lengths not in LENGTHS:
            raise ValueError(f"Expected argument `lengths` to be one of {LENGTHS}, but got {lengths!r}.")
        self.lengths: Lengths = lengths

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Score of one answer."""
        return anls(prediction, references, self.lengths)
