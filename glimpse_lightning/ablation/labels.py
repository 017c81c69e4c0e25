"""Names of lines in a plot, without overlaps: at an end of the line where there is room, else in a column next to the
plot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

FONT_SIZE = 7
LEADING = 1.05
"""Distance of two names in the column, as a multiple of the height of one."""
COLUMN = 1.02
"""Place of the column, to the right of a plot whose width is 1."""
DISTANCE = 5
"""Points between an end of a line and its name."""
SAMPLES = 40
"""Places between two markers of a line that names keep clear of."""
ALIGNED = {-1: "right", 0: "center", 1: "left"}
"""Alignment of a name by its side of the line's end: to the left, above or below, to the right."""
Box = tuple[float, float, float, float]
"""Left, lower, right and upper edge in pixels."""


@dataclass(frozen=True)
class Line:
    """A line's name, its colour and its points in the plot's data, from left to right."""

    name: str
    color: Any
    points: Sequence[tuple[float, float]]

    def sides(self) -> Iterator[tuple[tuple[float, float], tuple[int, int]]]:
        """Ends and directions from them, to the right and upwards, in which the name may stand."""
        yield self.points[-1], (1, 0)
        yield self.points[0], (-1, 0)
        if len(self.points) == 1:
            yield self.points[0], (0, 1)
            yield self.points[0], (0, -1)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places from ``low`` to ``high``, at least ``gap`` apart, with the least sum of squared distances to those wanted.

    Places less than a gap apart are pooled into blocks around their mean (pool adjacent violators; Ayer et al., 1955).
    Where there is too little room, places are closer together.

    Args:
        wanted: places in ascending order.
        gap: least distance of two places.
        low, high: ends of the room.
    """
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    blocks: list[tuple[float, int]] = []
    for number, place in enumerate(wanted):
        mean, size = place - number * gap, 1
        while blocks and blocks[-1][0] >= mean:
            other, others = blocks.pop()
            mean, size = (mean * size + other * others) / (size + others), size + others
        blocks.append((mean, size))
    starts = [mean for mean, size in blocks for _ in range(size)]
    last = high - (len(wanted) - 1) * gap
    return [min(max(start, low), last) + number * gap for number, start in enumerate(starts)]


def label_lines(figure: Figure, axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's name next to one of its ends, clear of all lines and of the names before it; where neither end
    is free, in a column to the right of ``axes``, with a thin line to the right end.

    The layout of ``figure``, which ``axes`` is in, is fixed by it.
    """
    texts = [_in_column(axes, line) for line in lines]
    figure.draw_without_rendering()  # so that the layout makes room for the column, and texts have a size
    figure.set_layout_engine("none")
    drawn = np.concatenate([_along(axes, line) for line in lines]) if lines else np.empty((0, 2))
    boxes: list[Box] = []
    crowded = []
    for line, text in zip(lines, texts, strict=True):
        free = next(_free_sides(axes, line, text, boxes, drawn), None)
        if free is None:
            crowded.append((line, text))
            continue
        point, side, box = free
        boxes.append(box)
        text.remove()
        _at_end(axes, line, point, side)
    _spread_column(axes, crowded)


def text_box(text: Text) -> Any:
    """Extent of a text in pixels, without the line that leads to it."""
    from matplotlib.text import Text as PlainText

    return PlainText.get_window_extent(text)


def _along(axes: Axes, line: Line) -> NDArray[Any]:
    """Places of a line in pixels, close to each other."""
    corners = axes.transData.transform(line.points)
    steps = np.arange(0, len(corners) - 1 + 0.5 / SAMPLES, 1 / SAMPLES)
    return np.stack([np.interp(steps, range(len(corners)), corners[:, axis]) for axis in (0, 1)], axis=1)


def _free_sides(
    axes: Axes, line: Line, text: Text, boxes: Sequence[Box], drawn: NDArray[Any]
) -> Iterator[tuple[tuple[float, float], tuple[int, int], Box]]:
    """Sides of a line's ends where its name is in the plot, on no line and on none of the ``boxes``."""
    size = np.asarray(text_box(text).size)
    left, lower, right, upper = axes.bbox.extents
    distance = DISTANCE * axes.figure.dpi / 72
    for point, side in line.sides():
        middle = axes.transData.transform(point) + np.asarray(side) * (distance + size / 2)
        start, end = middle - size / 2, middle + size / 2
        inside = start[0] >= left and start[1] >= lower and end[0] <= right and end[1] <= upper
        met = ((drawn >= start) & (drawn <= end)).all(axis=1).any()
        if inside and not met and not any(_overlap((*start, *end), box) for box in boxes):
            yield point, side, (*start, *end)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _at_end(axes: Axes, line: Line, point: tuple[float, float], side: tuple[int, int]) -> None:
    from matplotlib.patheffects import withStroke

    across, upwards = side
    axes.annotate(
        line.name, point, (DISTANCE * across, DISTANCE * upwards), textcoords="offset points", color=line.color,
        fontsize=FONT_SIZE, ha=ALIGNED[across], va={-1: "top", 0: "center", 1: "bottom"}[upwards],
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )  # fmt: skip


def _in_column(axes: Axes, line: Line) -> Text:
    arrow = {"arrowstyle": "-", "linewidth": 0.5, "color": line.color, "alpha": 0.5, "shrinkA": 1, "shrinkB": 2,
             "relpos": (0, 0.5)}  # fmt: skip
    return axes.annotate(
        line.name, line.points[-1], (COLUMN, 0.5), textcoords="axes fraction", color=line.color, fontsize=FONT_SIZE,
        va="center", arrowprops=arrow, annotation_clip=False,
    )  # fmt: skip


def _spread_column(axes: Axes, crowded: Sequence[tuple[Line, Text]]) -> None:
    """Move names in the column to the heights of their lines' right ends, as far as there is room."""
    order = sorted(crowded, key=lambda each: each[0].points[-1][::-1])
    gap = LEADING * max((text_box(text).height for _, text in order), default=0.0) / axes.bbox.height
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform(line.points[-1])[1]) for line, _ in order]
    for (_, text), place in zip(order, spread(wanted, gap, gap / 2, 1 - gap / 2), strict=True):
        text.set_position((COLUMN, place))
