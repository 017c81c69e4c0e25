"""Whether an answer has the form that was asked for."""

from __future__ import annotations

import re


def format(answer: str, pattern: str = r"\S.*") -> float:
    """1 where the whole of the answer, without spaces around it, matches the regular expression ``pattern``; else 0.

    The dot matches line ends too. By default anything but an empty answer will do; ``<think>.*</think>.+`` and
    ``\\[\\d+, \\d+, \\d+, \\d+\\]`` are usual.
    """
    return float(re.fullmatch(pattern, answer.strip(), re.DOTALL) is not None)
