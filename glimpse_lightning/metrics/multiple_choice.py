"""Multiple choice: the option that an answer names, and its accuracy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.metrics.rows import RowMetric
from glimpse_lightning.metrics.text import AnswerMetric, group_names
from glimpse_lightning.runtime.keys import stable_key

Rule = Literal["letter", "first", "search", "infer"]

_SEARCH = (  # V*, lmms-eval's vstar_bench
    re.compile(r"^([A-D])\s*[.)\]]*"),
    re.compile(r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])"),
    re.compile(r"\(([A-D])\)"),
    re.compile(r"([A-D])\s*[.)\]]"),
    re.compile(r"(?:^|\s)([A-D])(?:\s|$)"),
)
_AROUND = (  # MMBench: characters that may stand before and after a letter
    ("", ""), ("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."), (":", ""), (":", ","),
    (":", "."), (":", ")"), (":", ")."),
)  # fmt: skip


def letter_exactly(answer: str, options: dict[str, str]) -> str | None:
    """ScienceQA: the letter alone in either case, or a capital followed by a period at the very start."""
    text = answer.strip()
    if len(text) >= 2 and text[0].isupper() and text[1] == ".":
        return text[0]
    return text.upper() or None


def letter_first(answer: str, options: dict[str, str]) -> str | None:
    """SEED-Bench: the first character, in either case; the rest is ignored."""
    return answer.strip()[:1].upper() or None


def letter_search(answer: str, options: dict[str, str]) -> str | None:
    """V*: the letter of the first of several patterns that matches; if none does, the only letter out of A to D.

    As in lmms-eval, the first pattern takes any answer that begins with one of these letters (``"Blue"`` means B).
    """
    text = answer.strip().upper()
    for pattern in _SEARCH:
        if found := pattern.search(text):
            return found[1]
    letters = re.findall("[A-D]", text)
    return letters[0] if len(letters) == 1 else None


def letter_inferred(answer: str, options: dict[str, str]) -> str | None:
    """MMBench (Liu et al., arXiv 2307.06281): a letter out of A to E (and of any further options) among the words, if
    there is exactly one; else the option whose text occurs in the answer, if there is exactly one.

    A lone ``A`` among more than three words may be an article and is ignored. If neither rule decides, the original
    asks GPT or else draws at random; here the answer is wrong.
    """
    words = set(answer.split())
    letters = sorted({*"ABCDE", *options})
    for number, (before, behind) in enumerate(_AROUND):
        found = [letter for letter in letters if before + letter + behind in words]
        article = number == 0 and "A" in words and len(answer.split()) > 3
        if len(found) == 1 and not article:
            return found[0]
    text = answer.lower()
    named = [letter for letter, option in options.items() if option.lower() in text]
    return named[0] if len(named) == 1 else None


RULES = {"letter": letter_exactly, "first": letter_first, "search": letter_search, "infer": letter_inferred}


def multiple_choice(prediction: str, references: Sequence[str], rule: Rule = "letter") -> float:
    """1 if the prediction names the right option, else 0.

    Args:
        prediction: the answer.
        references: the letter of the right option, followed by all options as ``"A. red"``, ``"B. blue"``, ... (needed
            by the rule ``infer``).
        rule: rule that reads the answer: ``letter`` (ScienceQA), ``first`` (SEED-Bench), ``search`` (V*) or ``infer``
            (MMBench); all as in lmms-eval.
    """
    options = dict(option.split(". ", 1) for option in references[1:])
    return float(RULES[rule](prediction, options) == references[0])


class MultipleChoice(RowMetric, AnswerMetric):
    """Share of questions whose right option is named; see :func:`multiple_choice`.

    Args:
        rule: rule that reads answers: ``letter`` (ScienceQA), ``first`` (SEED-Bench), ``search`` (V*), ``infer``
            (MMBench).
        circular: whether to report ``circular_accuracy`` too, in which a question is right only if it is right under
            every rotation of its options (MMBench's CircularEval). Ids of the rotations differ only after a ``#``.
    """

    columns = {"group": torch.int64, "right": torch.int64}

    def __init__(self, rule: Rule = "letter", circular: bool = False, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if rule not in RULES:
            raise ValueError(f"Expected argument `rule` to be one of {tuple(RULES)}, but got {rule!r}.")
        self.rule: Rule = rule
        self.circular = circular

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1 if the right option is named, else 0."""
        return multiple_choice(prediction, references, self.rule)

    def update(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        ids: Sequence[str] = (),
        families: Sequence[str] = (),
    ) -> None:
        """Add questions; ``ids`` are needed if ``circular``.

        Raises:
            ValueError: if needed ids are missing.
        """
        super().update(predictions, references, ids, families)
        if not self.circular:
            return
        if len(ids) != len(predictions):
            raise ValueError("Expected `ids` of every question: rotations of one are told by them.")
        scores = [self.score(*pair) if pair[1] else 0.0 for pair in zip(predictions, references, strict=True)]
        groups = [stable_key(name) for name in group_names(ids, families)]
        self.add_rows(group=torch.tensor(groups, dtype=torch.int64), right=torch.tensor(scores))

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Accuracy, fp32; if ``circular``, a dictionary of ``accuracy`` and ``circular_accuracy``."""
        if not self.circular:
            return self.mean()
        groups, place, counts = self.column("group").unique(return_inverse=True, return_counts=True)
        right = torch.zeros_like(counts).index_add(0, place, self.column("right"))
        return {
            "accuracy": self.mean(),
            "circular_accuracy": ((right == counts).sum().double() / max(1, len(groups))).float(),
        }
