"""What scorers of free-form answers share."""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


def normalize(text: str) -> str:
    """Lower case, single spaces, no punctuation at either end."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


def number(text: str) -> float | None:
    """The number that ``text`` is, a percentage as its hundredth; ``None`` where it is none."""
    text = text.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements that turn ``a`` into ``b``."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


_PUNCTUATION = ';/[]"{}()=+\\_-><@`!'
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = {"a", "an", "the"}
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(i) for i, word in enumerate(_DIGITS.split())} | {"none": "0"}
_APOSTROPHES = (
    "ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'm "
    "i've isn't it'd it'll let's ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't "
    "shouldn't should've somebody'd somebody'll somebody's someone'd someone'll someone's something'd something'll "
    "that'd that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're "
    "what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've "
    "wouldn't y'all you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _APOSTROPHES.split()}


def normalize_vqa(text: str) -> str:
    """The VQA challenge's normaliser, as EvalAI and lmms-eval apply it.

    Lower case; no ``,`` ``?``; ``'s`` apart; a punctuation mark is dropped where it touches a space anywhere in the
    text, else turned into a space; no periods but decimal points; number words as digits; no articles; apostrophes put
    back into contractions.

    Deliberately not copied: the original passes ``re.UNICODE`` as the *count* of periods to strip (32), and lets unseen
    words grow its number table; neither changes an answer of sane length.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in _PUNCTUATION:
        out = out.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", out).split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


class AnswerMetric(Metric):
    """Mean over questions of a score in [0, 1].

    A subclass says how one prediction is scored against its references; a question without references scores 0.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @staticmethod
    @abstractmethod
    def score(prediction: str, references: Sequence[str]) -> float:
        """Score of one answer."""

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add questions: a prediction and the list of reference answers of each."""
        scores = answer_scores(predictions, references, self.score)
        self.total += sum(scores)
        self.count += len(scores)

    def compute(self) -> Tensor:
        """Mean score, fp32; 0 before the first question."""
        return (self.total / self.count.clamp(min=1)).float()


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
