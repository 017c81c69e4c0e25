"""Overlap of the box in an answer with the true one."""

from __future__ import annotations

import re

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def box_iou(answer: str, reference: str) -> float:
    """Intersection over union of two boxes ``[x1, y1, x2, y2]`` written in the texts, in [0, 1].

    The unit is that of the reference. The reward is 0 if the answer names no box or several, which are ambiguous, and 0
    for a box whose sides are in the wrong order.

    Raises:
        ValueError: if the reference does not name exactly one box.
    """
    target = BOX.findall(reference)
    if len(target) != 1:
        raise ValueError(
            f"Expected a reference with one box [x1, y1, x2, y2] for the reward `box_iou`, but got {reference!r}."
        )
    found = BOX.findall(answer)
    if len(found) != 1:
        return 0.0
    ax1, ay1, ax2, ay2 = map(float, found[0])
    bx1, by1, bx2, by2 = map(float, target[0])
    if ax2 <= ax1 or ay2 <= ay1:
        return 0.0
    overlap = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
    return overlap / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap)
