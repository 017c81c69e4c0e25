"""Multiple choice."""

from __future__ import annotations

import re

# What leads up to the letter of an option; "vitamin C" does not.
_CUES = "answer option choice letter is be choose pick select say both either and or not neither nor except than"
_LETTER = (  # as a word, A and I are followed by others
    r"(?P<letter>[B-HJ-Z]|[AI](?!\s+(?!(?:and|or|is|was|because|since|as)\b)[a-z]))(?![\w'\u2019+#-])"
)
_MENTION = re.compile(
    rf"(?:^|[\n.,;:!?(\[\"'*/&]\s*|\b(?:{_CUES.replace(' ', '|')})\s+[\"'(\[*]*){_LETTER}", re.IGNORECASE
)
_CAPITAL = re.compile(rf"(?<![\w'\u2019-])(?![K-Z]){_LETTER}")
_NEGATED = re.compile(r"(?:\b(?:not|neither|nor|except|than)|n['\u2019]t)\s+(?:\w+\s+)?[\"'(\[*]*$", re.IGNORECASE)
_REFUSED = re.compile(r"[\"')\].*]*\s+(?:is|was)\s+(?:not|wrong|incorrect|false)\b", re.IGNORECASE)


def choice(answer: str, reference: str) -> float:
    """1 where the letter that the answer chooses is the reference's; else 0.

    ``B``, ``b.``, ``(B)``, ``B) a dog``, ``The answer is (B).`` choose B. An answer is read by all its letters or not
    at all: where a second one out of A to J stands in it, whatever for, or where one is said not to be the answer,
    nothing is chosen, so that listing options earns nothing. Nor do letters choose that are words (``A dog``,
    ``I think``) or parts of names (``vitamin C``). A small letter counts alone, in brackets, or at the end behind
    ``answer``, ``option`` or ``choice``. (GlimpsePrune's ``single_choice``, which none of its configurations uses,
    accepts the bare letter only.)
    """
    chosen = letters(answer)
    return float(len(chosen) == 1 and chosen == letters(reference))


def letters(text: str) -> set[str]:
    """The option letters that a text chooses, in upper case, with all others that it names as well; a letter that
    it rules out counts as two.
    """
    bare = text.strip().strip("().[]\"'*: ").upper()
    if len(bare) == 1 and bare.isascii() and bare.isalpha():
        return {bare}
    found: set[str] = set()
    for match in _MENTION.finditer(text):
        letter, begin, end = match["letter"], *match.span("letter")
        if letter.islower() and not _small_letter_counts(text, begin, end):
            continue
        found.add(letter.upper())
        if _NEGATED.search(text[:begin]) or _REFUSED.match(text[end:]):
            found.add(f"not {letter.upper()}")
    return found | {*_CAPITAL.findall(text)} if found else found


def _small_letter_counts(text: str, begin: int, end: int) -> bool:
    if text[:begin].endswith("(") and text[end:].startswith(")"):
        return True
    led = re.search(r"\b(?:answer|option|choice)(?:\s+is)?:?\s+$", text[:begin], re.IGNORECASE)
    return bool(led) and not text[end:].strip(" ).]\"'*\n")
