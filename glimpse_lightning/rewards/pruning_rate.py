"""A reward for dropped visual tokens."""

from __future__ import annotations


def pruning_rate(retention: float, target: float = 0.0) -> float:
    """``1 - retention``, in [0, 1]; constant below the retention ``target``."""
    return 1.0 - max(retention, target)
