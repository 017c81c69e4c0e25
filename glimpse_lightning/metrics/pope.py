"""POPE: questions about objects that may be absent from the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.metrics.text import AnswerMetric

Reading = Literal["strict", "llava"]
READINGS = ("strict", "llava")
OUTCOMES = ("yes", "no", "other")


def read_yes_no(answer: str, reading: Reading = "strict") -> str:
    """``yes``, ``no`` or ``other``.

    Args:
        answer: answer of the model.
        reading: rule of reading. ``strict``, as in lmms-eval: the word alone, up to case and spaces at the ends
            (``"Yes."`` is other). ``llava``, as in LLaVA's ``eval_pope.py``: the first sentence means no if one of its
            words is ``No``, ``no`` or ``not``, else yes; commas are removed, and case matters (``"NO"`` means yes).
    """
    if reading == "strict":
        text = answer.lower().strip()
        return text if text in ("yes", "no") else "other"
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


class POPE(AnswerMetric):
    """Accuracy, precision, recall, F1 and the share of yes, ``yes`` being the positive class.

    Li et al., arXiv 2305.10355. As in lmms-eval, an answer that is neither yes nor no is wrong, but counts neither in
    precision nor in recall. Unlike in lmms-eval, ``yes_ratio`` is the share of yes among the *predictions*; lmms-eval
    counts the ground truth, which is about a half for every model.

    Args:
        reading: rule of reading answers, ``strict`` or ``llava``; see :func:`read_yes_no`.
    """

    table: Tensor

    def __init__(self, reading: Reading = "strict", **kwargs: object) -> None:
        super().__init__(**kwargs)
        if reading not in READINGS:
            raise ValueError(f"Expected argument `reading` to be one of {READINGS}, but got {reading!r}.")
        self.reading: Reading = reading
        self.add_state("table", torch.zeros(2, 3, dtype=torch.int64), dist_reduce_fx="sum")

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if yes or no is right, else 0."""
        return float(read_yes_no(prediction, self.reading) == _truth(references))

    def update(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        ids: Sequence[str] = (),
        families: Sequence[str] = (),
    ) -> None:
        """Add questions; each has one reference, yes or no.

        Raises:
            ValueError: if a reference is neither yes nor no.
        """
        super().update(predictions, references, ids, families)
        for prediction, answers in zip(predictions, references, strict=True):
            said = read_yes_no(prediction, self.reading)
            self.table[OUTCOMES.index(_truth(answers)), OUTCOMES.index(said)] += 1

    def compute(self) -> dict[str, Tensor]:
        """``accuracy``, ``precision``, ``recall``, ``f1`` and ``yes_ratio``, fp32; 0 if a denominator is 0."""
        table = self.table.double()
        (hits, misses, _), (false_alarms, _, _) = table
        precision, recall = _ratio(hits, hits + false_alarms), _ratio(hits, hits + misses)
        figures = {
            "precision": precision,
            "recall": recall,
            "f1": _ratio(2 * precision * recall, precision + recall),
            "yes_ratio": _ratio(table[:, 0].sum(), table.sum()),
        }
        return {"accuracy": self.mean(), **{name: value.float() for name, value in figures.items()}}


def _truth(references: Sequence[str]) -> str:
    (reference,) = references if len(references) == 1 else ("",)
    answer = reference.lower().strip()
    if answer not in ("yes", "no"):
        raise ValueError(f"Expected one reference, `yes` or `no`, for each question, but got {list(references)}.")
    return answer


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.where(whole > 0, 1.0)
