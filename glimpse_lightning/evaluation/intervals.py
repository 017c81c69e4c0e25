"""Confidence intervals of means over questions, and of medians."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from glimpse_lightning.runtime.errors import GlimpseError

RESAMPLES = 10_000
SEED = 0  # resamples are the same for all cells and on every machine
BLOCK = 2**22  # numbers drawn at once


@dataclass(frozen=True)
class Estimate:
    """A mean (or median) over ``n`` questions and its confidence interval from ``low`` to ``high``."""

    value: float
    low: float
    high: float
    n: int


def mean_estimate(values: Sequence[float], images: Sequence[str] = (), least: float = 0.0) -> Estimate:
    """Mean of scores with its 95 % confidence interval, where questions about one image count together.

    Agresti and Coull's interval (1998; for differences Bonett and Price's, 2012) with an effective number of questions,
    after Korn and Graubard (1998). The variance of the mean comes from leaving out one image after the other, and is
    never below that of independent questions. The number of independent questions with the same scores whose mean has
    that variance is the effective one; if all scores are equal, it is the number of images. To these are added ``t^2 /
    2`` scores (for differences ``t^2 / 4``) at each end of the range. The interval is the mean of them all and ``t``
    standard errors to each side, within the range. ``t`` is Student's, with one degree of freedom less than the
    equivalent number of images of equal size. For a single image, which carries no information about others, the
    interval is the whole range.

    Simulated coverage (``benchmarks/intervals.md``; in brackets that of a percentile bootstrap over questions):

    * 200 independent answers, 98, 90 and 50 % of them right: 0.982, 0.957, 0.954 (0.911, 0.959, 0.958);
    * 40 images of 25 questions, whose scores have a correlation of 0.3: 0.901, 0.936, 0.952 (0.520, 0.514, 0.507);
    * 8 images of 25 questions: 0.995, 0.928, 0.962 (0.365, 0.532, 0.507);
    * ANLS in these three settings: 0.954, 0.953, 0.938 (0.941, 0.506, 0.482);
    * differences, 10 % of the answers lost and 5 % won: 0.957, 0.967, 0.974 (0.954, 0.523, 0.507);
    * differences, of which 98.5 % are 0 and most others small: 1.000, 0.957, 1.000 (0.404, 0.317, 0.160).

    Args:
        values: score of each question, in [``least``, 1].
        images: name of the image of each question; ``""``: unknown, so that the question counts as an image of its own.
            Default: all unknown.
        least: lower end of the range: 0 for scores, -1 for differences of two scores.

    Raises:
        GlimpseError: if a value lies outside the range, or there are no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data) or not (least <= data.min() and data.max() <= 1):
        got = f"{data.min():g} to {data.max():g}" if len(data) else "none"
        raise GlimpseError(f"Expected scores from {least:g} to 1, but got {got}; have the metric scale its scores.")
    if len(images) not in (0, len(data)):
        raise GlimpseError(f"Expected the image of each of {len(data)} scores, but got {len(images)} images.")
    count, mean = len(data), float(data.mean())
    numbers: dict[str | int, int] = {}
    image = [numbers.setdefault(name or place, len(numbers)) for place, name in enumerate(images or [""] * count)]
    sizes, sums = np.bincount(image), np.bincount(image, data)
    if len(sizes) == 1:
        return Estimate(mean, least, 1.0, count)
    without = (data.sum() - sums) / (count - sizes)
    jackknife = (1 - 1 / len(sizes)) * np.square(without - mean).sum()
    variance = max(float(jackknife), float(data.var(ddof=1)) / count)
    alike = count**2 / float(np.square(sizes).sum())
    t = _student(alike - 1)
    effective = float(data.var()) / variance if variance > 1e-18 else alike
    added = t**2 / (2 * (1 - least))
    total = effective + 2 * added
    middle = (effective * mean + added * (1 + least)) / total
    spread = (effective * float(np.square(data).mean()) + added * (1 - least)) / total - middle**2
    reach = t * math.sqrt(spread / total)
    return Estimate(mean, max(least, middle - reach), min(1.0, middle + reach), count)


def _student(degrees: float) -> float:
    """The 0.975 quantile of Student's t (Abramowitz and Stegun 26.7.5): 0.004 short at 3 degrees, 1.4 at 1."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


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


@lru_cache(maxsize=4096)  # tables and plots ask for the same estimates
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
