"""Base class and helpers of metrics of free-form answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch

from glimpse_lightning.metrics.running_mean import RunningMean

QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb"
SENTENCE_MARKS = ".,;:?!\u2026\u3002"


def normalize(text: str) -> str:
    """Lower case and single spaces, without quotes at the ends and sentence marks at the end.

    Signs, operators, units and brackets carry meaning and stay: ``-5``, ``C++``, ``50 %``, ``.5``. A text that consists
    of marks alone stays too, and so does an exclamation mark after a digit.
    """
    whole = " ".join(text.lower().split())
    bare = whole.lstrip(QUOTES + " ")
    while bare and bare[-1] in QUOTES + SENTENCE_MARKS + " " and not (bare[-1] == "!" and bare[-2:-1].isdigit()):
        bare = bare[:-1]
    return bare or whole


def number(text: str) -> float | None:
    """The number written in ``text``, a percentage divided by 100; ``None`` if ``text`` is no number."""
    text = text.strip()
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


class AnswerMetric(RunningMean):
    """Mean over questions of a score in [0, 1].

    A subclass scores one prediction against its references; a question without references scores 0. Some subclasses
    also group questions: by ``ids``, where the part before the last ``#`` names the group (``"12#0"`` and ``"12#1"``
    belong together), and by ``families``.
    """

    @abstractmethod
    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Score of one answer."""

    def update(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        ids: Sequence[str] = (),
        families: Sequence[str] = (),
    ) -> None:
        """Add questions: a prediction and the list of reference answers of each, with its id and family if the metric
        needs them.

        Raises:
            ValueError: if a string is given in place of a list, or the lists differ in length.
        """
        for name, values in {"ids": ids, "families": families}.items():
            if values and len(values) != len(predictions):
                raise ValueError(
                    f"Expected as many `{name}` as `predictions`, but got {len(values)} and {len(predictions)}."
                )
        self.add(torch.tensor(answer_scores(predictions, references, self.score), dtype=torch.float64))


def answer_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], score: Callable[[str, Sequence[str]], float]
) -> list[float]:
    """The score of each prediction against its references."""
    if isinstance(predictions, str) or any(isinstance(answers, str) for answers in references):
        raise ValueError(
            "Expected `predictions` to be a list of strings and `references` a list of lists of strings, but got a "
            "bare string in their place. Wrap each question's reference in a list."
        )
    if len(predictions) != len(references):
        raise ValueError(
            f"Expected as many `references` as `predictions`, but got {len(references)} and {len(predictions)}."
        )
    return [
        score(prediction, answers) if answers else 0.0
        for prediction, answers in zip(predictions, references, strict=True)
    ]


def group_names(ids: Sequence[str], families: Sequence[str]) -> list[str]:
    """The group of each question; questions of one group are scored together (:class:`AnswerMetric`)."""
    families = families or [""] * len(ids)
    return [f"{family}\n{name.rsplit('#', 1)[0]}" for name, family in zip(ids, families, strict=True)]
