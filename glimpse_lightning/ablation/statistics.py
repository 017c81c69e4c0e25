"""Paired differences, their p-values, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from glimpse_lightning.evaluation.intervals import SEED, Estimate, mean_estimate

FLIPS = 99_999
"""Draws of signs: the standard error of a p-value of 0.05 is 0.0007."""


def paired_difference(
    scores: Mapping[str, float], reference: Mapping[str, float], images: Mapping[str, str] = MappingProxyType({})
) -> Estimate | None:
    """Mean of ``scores - reference`` over the questions that both have, by id; ``None`` where they share none.

    Args:
        scores: score of each question, in [0, 1].
        reference: the reference's scores; where it is ``scores`` itself, the difference is 0 without uncertainty.
        images: name of the image that each question is about, where it is known.
    """
    common = sorted(set(scores) & set(reference))
    if not common:
        return None
    if scores is reference:
        return Estimate(0.0, 0.0, 0.0, len(common))
    differences = [scores[name] - reference[name] for name in common]
    return mean_estimate(differences, [images.get(name, "") for name in common], least=-1.0)


def sign_flip_p(differences: Sequence[float], images: Sequence[str] = (), flips: int = FLIPS) -> float:
    """Two-sided p-value of a mean difference, by flipping the signs of whole images at random.

    Where two runs are equally good, either could have given either answer. The differences of all questions about an
    image then have the opposite sign as often (Fisher, The Design of Experiments, 1935, section 21). The p-value is the
    share of random signs, the observed ones among them, under which the mean is at least as far from 0. It is valid for
    any number of draws and never 0 (Phipson and Smyth, 2010), and questions about one image may depend on each other in
    any way. ``n`` images that differ cannot have a p-value far below ``2 ** (1 - n)``.

    Args:
        differences: difference in score of each question.
        images: name of the image of each question, as for :func:`mean_estimate`. Default: an image for each question.
        flips: number of draws.
    """
    sums: dict[str | int, float] = {}
    for place, (name, value) in enumerate(zip(images or [""] * len(differences), differences, strict=True)):
        sums[name or place] = sums.get(name or place, 0.0) + value
    rng = np.random.default_rng(SEED)
    drawn = np.zeros(flips)
    for size in filter(None, sums.values()):
        drawn += size * (2 * rng.integers(2, size=flips, dtype=np.int8) - 1)
    observed = abs(sum(sums.values()))
    return float((1 + np.count_nonzero(np.abs(drawn) >= observed - 1e-6)) / (1 + flips))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number, so that one of them is below 0.05 by chance in at most 5 % of all cases
    (Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979).
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, gain) that no other point beats, by costing no more and gaining no less without
    being equal.

    In order of cost.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front
