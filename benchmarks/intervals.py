"""Coverage of 95 % intervals of a mean, simulated: `python benchmarks/intervals.py > benchmarks/intervals.md`.

Images are drawn, then questions about each: the odds of the scores are the same for all images (correlation 0), or
drawn for each image from a Dirichlet distribution, under which two questions of one image have the given correlation.
"""

from __future__ import annotations

import argparse
import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glimpse_lightning.evaluation.intervals import mean_estimate

Numbers = NDArray[Any]
Interval = tuple[float, float]
METHODS = ("bootstrap of questions", "of images", "BCa", "bootstrap-t", "`mean_estimate`")
RESAMPLES = 400
LEVELS = (0.025, 0.975)


def sums(values: Numbers, image: Numbers) -> tuple[Numbers, Numbers]:
    """Number of questions, and sum of their scores, of each image."""
    return np.bincount(image).astype(float), np.bincount(image, values)


def resampled(values: Numbers, image: Numbers, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Means of resamples of images, and their standard errors."""
    size, total = sums(values, image)
    drawn = rng.integers(len(size), size=(RESAMPLES, len(size)))
    size, total = size[drawn], total[drawn]
    mean = total.sum(1) / size.sum(1)
    error = np.sqrt(np.square(total - size * mean[:, None]).sum(1)) / size.sum(1)
    return mean, error


def percentile(found: Numbers) -> Interval:
    """From one quantile of resamples' means to the other."""
    low, high = np.quantile(found, LEVELS)
    return low, high


def bca(values: Numbers, image: Numbers, found: Numbers) -> Interval:
    """Bias-corrected and accelerated bootstrap."""
    mean, normal = values.mean(), NormalDist()
    if not np.ptp(found):
        return mean, mean
    below = ((found < mean).mean() + (found <= mean).mean()) / 2
    bias = normal.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    size, total = sums(values, image)
    without = (total.sum() - total) / (len(values) - size)
    away = without.mean() - without
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5) if away.any() else 0.0
    shifted = [bias + normal.inv_cdf(level) for level in LEVELS]
    low, high = np.quantile(found, [normal.cdf(bias + z / (1 - acceleration * z)) for z in shifted])
    return low, high


def studentised(values: Numbers, image: Numbers, found: Numbers, errors: Numbers) -> Interval:
    """Bootstrap-t."""
    mean, (size, total) = values.mean(), sums(values, image)
    error = math.sqrt(np.square(total - size * mean).sum()) / len(values)
    if not error or (errors > 0).sum() < 10:
        return mean, mean
    low, high = np.quantile((found - mean)[errors > 0] / errors[errors > 0], LEVELS)
    return mean - high * error, mean - low * error


def intervals(values: Numbers, image: Numbers, least: float, rng: np.random.Generator) -> list[Interval]:
    """The interval of each of ``METHODS``."""
    found, errors = resampled(values, image, rng)
    alone = percentile(resampled(values, np.arange(len(values)), rng)[0]) if image[-1] + 1 < len(values) else None
    estimate = mean_estimate(values, [str(number) for number in image], least)
    return [
        alone or percentile(found), percentile(found), bca(values, image, found),
        studentised(values, image, found, errors), (estimate.low, estimate.high),
    ]  # fmt: skip


def right(share: float) -> dict[float, float]:
    """Scores and their odds where each answer is right or wrong."""
    return {0.0: 1 - share, 1.0: share}


ANLS = {0.0: 0.15, 0.5: 0.01, 0.6: 0.02, 0.7: 0.03, 0.8: 0.05, 0.9: 0.09, 1.0: 0.65}
PAIRED = {"2 % lost, 1 % won": (0.02, 0.01), "10 % lost, 5 % won": (0.1, 0.05), "40 % lost, 10 % won": (0.4, 0.1)}
SCORES = {**{f"p = {share}": right(share) for share in (0.98, 0.9, 0.5)}, "ANLS": ANLS} | {
    name: {-1.0: lost, 0.0: 1 - lost - won, 1.0: won} for name, (lost, won) in PAIRED.items()
}
SCORES |= {
    "97 % 1, 2 % 0.9": {0.0: 0.01, 0.9: 0.02, 1.0: 0.97},
    "1.25 % -0.05, 0.25 % -1": {-1.0: 0.0025, -0.05: 0.0125, 0.0: 0.985},
}
UNEVEN = [max(1, round(250 / rank)) for rank in range(1, 41)]
IMAGES: dict[str, tuple[list[int], float]] = {
    "200 questions, an image each": ([1] * 200, 0.0),
    "20 questions, an image each": ([1] * 20, 0.0),
    "200 images of 2": ([2] * 200, 0.3),
    "40 images of 25, alike": ([25] * 40, 0.0),
    "40 images of 25": ([25] * 40, 0.3),
    "8 images of 25": ([25] * 8, 0.3),
    "40 images of 250, 125, 83, ... 6": (UNEVEN, 0.3),
}


def draw(odds: dict[float, float], sizes: list[int], correlation: float, rng: np.random.Generator) -> Any:
    """Scores, and the image of each."""
    image = np.repeat(np.arange(len(sizes)), sizes)
    share = np.array(list(odds.values()))
    images = len(sizes)
    each = rng.dirichlet(share * (1 / correlation - 1), images) if correlation else share[None].repeat(images, 0)
    place = (rng.random(len(image))[:, None] > each.cumsum(1)[image]).sum(1).clip(max=len(share) - 1)
    return np.array(list(odds))[place], image


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    print("# Coverage of intervals\n")
    print(f"Share of {runs:,} simulated evaluations whose 95 % interval holds the true mean, and the mean width of the")
    print("intervals of `mean_estimate` (`python benchmarks/intervals.py`). Two scores of one image have a correlation")
    print("of 0.3, unless images are alike.")
    for name, (sizes, correlation) in IMAGES.items():
        print(f"\n## {name}\n\n| scores | {' | '.join(METHODS)} | width |\n|{'---|' * (len(METHODS) + 2)}")
        for kind, odds in SCORES.items():
            rng = np.random.default_rng(0)
            true, width, hits = sum(score * share for score, share in odds.items()), 0.0, np.zeros(len(METHODS))
            for _ in range(runs):
                found = intervals(*draw(odds, sizes, correlation, rng), min(odds), rng)
                hits += [low - 1e-12 <= true <= high + 1e-12 for low, high in found]
                width += (found[-1][1] - found[-1][0]) / runs
            print(f"| {kind} | {' | '.join(f'{hit / runs:.3f}' for hit in hits)} | {width:.3f} |", flush=True)


if __name__ == "__main__":
    main()
