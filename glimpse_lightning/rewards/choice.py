"""Multiple choice, as a reward."""

from __future__ import annotations

import re

# Words before the letter of an option; "vitamin C" has none of them.
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
    """1 if the answer chooses the letter of the reference, else 0.

    ``B``, ``b.``, ``(B)``, ``B) a dog``, ``The answer is (B).`` choose B. No letter is chosen if the answer contains a
    second one out of A to J, for any reason, or rules a letter out, so that a list of options gets no reward. Letters
    that are words (``A dog``, ``I think``) or parts of names (``vitamin C``) do not count. A small letter counts alone,
    in brackets, or at the end after ``answer``, ``option`` or ``choice``. (GlimpsePrune's ``single_choice``, which none
    of its configurations uses, accepts the bare letter only.)
    """
    chosen = letters(answer)
    return float(len(chosen) == 1 and chosen == letters(reference))


def letters(text: str) -> set[str]:
    """The option letters that a text names, in upper case. A letter that is ruled out counts as two, so that the text
    chooses none.
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
