"""Evidence boxes from users' files: checked, and scaled to the unit square."""

from __future__ import annotations

from typing import Any, Literal

from glimpse_lightning.data.sample import Box
from glimpse_lightning.runtime.errors import BadSampleError

BoxFormat = Literal["normalised", "pixels"]

ROUNDING = 1e-3  # a normalised box may lie so far outside the image by rounding; it is clipped


def read_box(box: Any, where: str) -> Box:
    """Four numbers ``x1, y1, x2, y2`` with a width and a height.

    Raises:
        BadSampleError: if ``box`` is not such a list; the message begins with ``where``.
    """
    numbers = (
        isinstance(box, (list, tuple))
        and len(box) == 4
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in box)
    )
    if not numbers:
        raise BadSampleError(f"{where}: expected each box to be four numbers [x1, y1, x2, y2], but got {box!r}.")
    x1, y1, x2, y2 = (float(value) for value in box)
    if not (x1 < x2 and y1 < y2):
        raise BadSampleError(f"{where}: expected a box with x1 < x2 and y1 < y2, but got {box}.")
    return x1, y1, x2, y2


def inside(box: Box, where: str, box_format: BoxFormat) -> Box:
    """``box``, relative to width and height, clipped to the image if it leaves it by a rounding error only.

    Raises:
        BadSampleError: if the box leaves the image by more; the message names ``box_format``, in which the box was
            written.
    """
    if min(box) < -ROUNDING or max(box) > 1 + ROUNDING:
        hint = "; boxes in pixels need `box_format: pixels`" if max(box) > 2 and box_format != "pixels" else ""
        raise BadSampleError(f"{where}: box {box} (relative to width and height) lies outside the image{hint}.")
    x1, y1, x2, y2 = (min(1.0, max(0.0, value)) for value in box)
    return x1, y1, x2, y2


def relative(box: Box, size: tuple[int, int], where: str) -> Box:
    """A box in pixels of an image of ``size`` (width, height), relative to ``size`` and inside the image."""
    (x1, y1, x2, y2), (width, height) = box, size
    return inside((x1 / width, y1 / height, x2 / width, y2 / height), where, "pixels")
