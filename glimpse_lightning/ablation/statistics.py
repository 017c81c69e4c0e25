"""Paired differences, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from glimpse_lightning.intervals import Estimate, bootstrap


def paired_difference(scores: Mapping[str, float], reference: Mapping[str, float]) -> Estimate | None:
    """Mean of ``scores - reference`` over the questions that both have, by id; ``None`` where they share none."""
    common = sorted(set(scores) & set(reference))
    return bootstrap([scores[name] - reference[name] for name in common]) if common else None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (cost, gain) that no other beats: none costs no more and gains no less, and is not equal.

    In order of cost.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front
