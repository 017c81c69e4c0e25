"""The answer normaliser of the VQA challenge (EvalAI, pythia and mmf, lmms-eval's ``vqa_eval_metric.py``)."""

from __future__ import annotations

import re
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MARKED = re.compile(f"[{re.escape(_PUNCTUATION)}]")
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,+\d")
_ARTICLES = {"a", "an", "the"}
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(i) for i, word in enumerate(_DIGITS.split())} | {"none": "0"}
_APOSTROPHES = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've "
    "weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're "
    "you've"
)


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


# "somebody'd" is an error in the original table, kept because scores depend on it.
_CONTRACTIONS = {short: word for word in _APOSTROPHES.split() for short in _without_one_apostrophe(word)} | {
    "somebody'd": "somebodyd"
}


def tokenize(text: str) -> str:
    """Lower case, no ``,`` and ``?``, ``'s`` apart."""
    return text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def without_punctuation(text: str) -> str:
    """``text`` without punctuation. A mark is removed if it touches a space anywhere in ``text``, or if a number in
    ``text`` has a comma; else it becomes a space. Of periods, only decimal points stay.

    The original passes ``re.UNICODE`` as the *count* of periods to strip (32) and misspells a lookbehind as
    ``(?!<=\\d)``, which always holds. The count is not copied, as no answer has 33 sentences.
    """
    out = text
    if _MARKED.search(text):
        number = _COMMA_IN_NUMBER.search(text) is not None
        for mark in set(_PUNCTUATION).intersection(text):
            out = out.replace(mark, "" if number or f"{mark} " in text or f" {mark}" in text else " ")
    return _PERIOD.sub("", out) if "." in out else out


def without_articles(text: str) -> str:
    """Number words as digits, no articles, apostrophes put back into contractions, single spaces.

    The original adds unknown words to its table of numbers, which does not change results.
    """
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def one_line(text: str) -> str:
    """Line breaks and tabs as spaces, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)  # annotators repeat one another
def normalize_vqa(text: str) -> str:
    """All steps: :func:`tokenize`, :func:`without_punctuation`, :func:`without_articles`."""
    return without_articles(without_punctuation(one_line(tokenize(text))))


@lru_cache(maxsize=1 << 16)
def normalize_vqav2(text: str) -> str:
    """The steps that lmms-eval applies to VQAv2: all but :func:`tokenize`, so commas and ``'s`` stay for the others."""
    return without_articles(without_punctuation(one_line(text)))
