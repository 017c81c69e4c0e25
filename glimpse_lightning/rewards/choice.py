"""Multiple choice."""

from __future__ import annotations

import re

_MARKED = re.compile(
    r"\(([A-Z])\)|\b([A-Z])(?=[).:]|\s*$)|\b(?:answer|option|choice)(?:\s+is)?:?\s+([A-Z])\b", re.IGNORECASE
)


def choice(answer: str, reference: str) -> float:
    """1 where the letter that the answer chooses is the reference's; else 0.

    ``B``, ``b.``, ``(B)``, ``B) a dog``, ``The answer is (B).`` choose B. Where an answer names several letters,
    nothing is chosen. (GlimpsePrune's ``single_choice``, which none of its configurations uses, accepts
    the bare letter only.)
    """
    chosen = letters(answer)
    return float(len(chosen) == 1 and chosen == letters(reference))


def letters(text: str) -> set[str]:
    """The option letters that a text names, in upper case."""
    bare = text.strip().strip("().").upper()
    if len(bare) == 1 and bare.isalpha():
        return {bare}
    return {next(filter(None, match)).upper() for match in _MARKED.findall(text)}
