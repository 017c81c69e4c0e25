"""The form of an answer, as a reward."""

from __future__ import annotations

import re


def format(answer: str, pattern: str = r"\S.*") -> float:
    """1 if the whole answer, without spaces around it, matches the regular expression ``pattern``; else 0.

    The dot also matches line ends. The default pattern matches every answer that is not empty; ``<think>.*</think>.+``
    and ``\\[\\d+, \\d+, \\d+, \\d+\\]`` are common.
    """
    return float(re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None)
