"""A reward for every visual token that is gone."""

from __future__ import annotations


def pruning_rate(retention: float, target: float = 0.0) -> float:
    """``1 - retention``, in [0, 1]; below the retention ``target`` there is nothing more to gain."""
    return 1.0 - max(retention, target)
