"""Paired differences, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from glimpse_lightning.evaluation.intervals import Estimate, mean_estimate


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
