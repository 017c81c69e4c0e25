"""A price on long answers."""

from __future__ import annotations


def length(tokens: int, finished: bool, free: int = 16, longest: int = 64) -> float:
    """0 up to ``free`` tokens, falling linearly to -1 at ``longest`` and beyond; -1 for an answer that was cut off.

    DAPO's soft overlong punishment (arXiv 2503.14476).
    """
    if not free < longest:
        raise ValueError(f"Expected `free` < `longest` for the reward `length`, but got {free} and {longest}.")
    return -min(1.0, max(0.0, (tokens - free) / (longest - free))) if finished else -1.0
