"""Accuracy of the VQA challenge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from glimpse_lightning.metrics.text import AnswerMetric
from glimpse_lightning.metrics.vqa_text import normalize_vqa, normalize_vqav2, one_line

Normaliser = Literal["full", "vqav2", "vqav2-0.3"]
NORMALISERS = ("full", "vqav2", "vqav2-0.3")


def vqa_accuracy(prediction: str, references: Sequence[str], normaliser: Normaliser = "full") -> float:
    """Mean over annotators of ``min(1, matches among the others / 3)``.

    Antol et al., arXiv 1505.00468, as EvalAI and lmms-eval compute it. With ten annotators: all agree 1.0, three 0.9,
    two 0.6, one 0.3. With a single reference the score is 1 on a match.

    Args:
        prediction: the answer.
        references: one answer of each annotator.
        normaliser: steps of normalisation. ``full``: all steps on both sides (TextVQA, VizWiz). ``vqav2``: all steps
            but :func:`~glimpse_lightning.metrics.vqa_text.tokenize` on both sides, as lmms-eval scores VQAv2.
            ``vqav2-0.3``: as lmms-eval 0.3.5, which papers of 2025 used: no step on either side if the annotators agree
            (so ``Yes`` does not match a unanimous ``yes``).
    """
    normalise: Callable[[str], str]
    if normaliser == "full":
        normalise = normalize_vqa
    elif normaliser == "vqav2" or len({one_line(reference) for reference in references}) > 1:
        normalise = normalize_vqav2
    else:
        normalise = one_line
    answer, accepted = normalise(prediction), [normalise(reference) for reference in references]
    hits = [answer == reference for reference in accepted]
    matches = sum(hits)
    if len(hits) == 1:
        return float(matches)
    right, wrong = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * right + (len(hits) - matches) * wrong) / len(hits)


class VQAAccuracy(AnswerMetric):
    """Mean accuracy of the VQA challenge; see :func:`vqa_accuracy`.

    Args:
        normaliser: steps of normalisation: ``full`` (TextVQA, VizWiz), ``vqav2`` or ``vqav2-0.3``.
    """

    def __init__(self, normaliser: Normaliser = "full", **kwargs: object) -> None:
        super().__init__(**kwargs)
        if normaliser not in NORMALISERS:
            raise ValueError(f"Expected argument `normaliser` to be one of {NORMALISERS}, but got {normaliser!r}.")
        self.normaliser: Normaliser = normaliser

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Score of one answer."""
        return vqa_accuracy(prediction, references, self.normaliser)
