"""How sure a mean (or median) is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

RESAMPLES = 10_000
SEED = 0  # resamples are alike for all cells, on every machine
BLOCK = 2**22  # numbers drawn at once


@dataclass(frozen=True)
class Estimate:
    """A mean (or median) over ``n`` questions and its confidence interval from ``low`` to ``high``."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    values: Sequence[float], level: float = 0.95, resamples: int = RESAMPLES, of: Literal["mean", "median"] = "mean"
) -> Estimate:
    """Mean (or median) of ``values`` with its percentile-bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    Questions are drawn with replacement ``resamples`` times; the interval reaches from the ``(1 - level) / 2`` quantile
    of the resamples' means (medians) to the ``(1 + level) / 2`` quantile.
    """
    if not values:
        raise ValueError("Expected at least one value to bootstrap, but got none.")
    return _bootstrap(tuple(values), level, resamples, of)


@lru_cache(maxsize=4096)  # table, CSV and plots show the same estimates
def _bootstrap(values: tuple[float, ...], level: float, resamples: int, of: str) -> Estimate:
    middle: Callable[..., Any] = np.median if of == "median" else np.mean
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(SEED)
    rows = max(1, BLOCK // len(data))
    found = [
        middle(data[rng.integers(len(data), size=(min(rows, resamples - start), len(data)), dtype=np.int32)], axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(middle(data)), float(low), float(high), len(data))
