"""How sure a mean over questions is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 10_000
SEED = 0  # resamples are alike for all cells, on every machine
BLOCK = 2**22  # numbers drawn at once


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` questions and its confidence interval from ``low`` to ``high``."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(values: Sequence[float], level: float = 0.95, resamples: int = RESAMPLES) -> Estimate:
    """Mean of ``values`` with its percentile-bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    Questions are drawn with replacement ``resamples`` times; the interval reaches from the ``(1 - level) / 2`` quantile
    of the resamples' means to the ``(1 + level) / 2`` quantile.
    """
    if not values:
        raise ValueError("Expected at least one value to bootstrap, but got none.")
    return _bootstrap(tuple(values), level, resamples)


@lru_cache(maxsize=4096)  # table, CSV and plots show the same estimates
def _bootstrap(values: tuple[float, ...], level: float, resamples: int) -> Estimate:
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(SEED)
    rows = max(1, BLOCK // len(data))
    means = [
        data[rng.integers(len(data), size=(min(rows, resamples - start), len(data)), dtype=np.int32)].mean(1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(data.mean()), float(low), float(high), len(data))
