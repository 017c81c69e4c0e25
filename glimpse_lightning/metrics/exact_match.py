"""Exact match."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Literal

from glimpse_lightning.metrics.text import AnswerMetric, normalize

Punctuation = Literal["ends", "all"]
PUNCTUATION = ("ends", "all")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, references: Sequence[str], punctuation: Punctuation = "ends") -> float:
    """1 if the prediction equals a reference, up to case, quotes and sentence marks; else 0.

    Args:
        prediction: the answer.
        references: answers that count as right.
        punctuation: marks that are ignored. ``ends``: quotes at the ends, sentence marks at the end and repeated spaces
            (:func:`~.text.normalize`). ``all``: all punctuation (``t-shirt`` equals ``tshirt``), but not the spaces
            between words, which is GQA's rule in lmms-eval. One repair: a space that removed punctuation leaves at an
            end (``dog .``) is ignored.
    """
    if punctuation == "ends":
        return float(normalize(prediction) in {normalize(reference) for reference in references})
    return float(_bare(prediction) in {_bare(reference) for reference in references})


def _bare(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION).strip()


class ExactMatch(AnswerMetric):
    """Share of answers that equal one of their references; see :func:`exact_match`.

    Args:
        punctuation: ignored marks: those at the ``ends``, or ``all`` (GQA's rule).
    """

    def __init__(self, punctuation: Punctuation = "ends", **kwargs: object) -> None:
        super().__init__(**kwargs)
        if punctuation not in PUNCTUATION:
            raise ValueError(f"Expected argument `punctuation` to be one of {PUNCTUATION}, but got {punctuation!r}.")
        self.punctuation: Punctuation = punctuation

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Score of one answer."""
        return exact_match(prediction, references, self.punctuation)
