"""Accuracy against cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimpse_lightning.ablation.labels import FONT_SIZE, Line, label_lines
from glimpse_lightning.ablation.rows import Row
from glimpse_lightning.ablation.statistics import pareto_front
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.whole_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"kv_retention": ("tokens", "visual tokens kept (KV at decode)"), "flops_ratio": ("flops", "FLOPs of prefill")}
MARKERS = "osD^v<>ph*XP"
TICKS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
LINEAR_BELOW = 0.02
WIDTH, HEIGHT, DPI = 11, 6, 150
ROOM = 0.17
"""Height in inches for the name of a line."""
IN_LEGEND = 10
"""Largest number of methods that a legend names."""
Point = tuple[float, float, float, float]
"""Cost, accuracy, and the ends of its interval."""


def write_plots(rows: Sequence[Row], folder: Path, methods: Collection[str] = ()) -> list[Path]:
    """``pareto_tokens`` and ``pareto_flops`` as PNG and SVG; a line for each method, its cells with their intervals.
    None where no cell has an accuracy.

    Args:
        rows: rows of the tables.
        folder: folder of the files.
        methods: names of the methods that are drawn, and among which the front is. Default: all.

    Raises:
        GlimpseError: where matplotlib is not installed.
    """
    try:
        import matplotlib.backends.backend_agg  # noqa: F401
    except ImportError:
        raise GlimpseError(
            "Plots need matplotlib, which is not installed: `pip install 'glimpse-lightning[plots]'`, then run the "
            "same command again; finished cells are not run again."
        ) from None
    shown = [row for row in rows if not methods or row.method in methods]
    if all(row.accuracy() is None for row in shown):
        return []
    written = []
    for cost, (name, _) in COSTS.items():
        figure = pareto_figure(shown, cost)
        for suffix in (".png", ".svg"):
            path = folder / f"pareto_{name}{suffix}"
            with replacing(path) as draft:
                figure.savefig(draft, format=suffix[1:], dpi=DPI)
            written.append(path)
    return written


def pareto_figure(rows: Sequence[Row], cost: str) -> Figure:
    """A figure of accuracy against one of ``COSTS``; many methods are named next to their lines, a few in a legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = _lines(rows, cost)
    figure = Figure(figsize=(WIDTH, max(HEIGHT, ROOM * len(lines))), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _set_up(axes, COSTS[cost][1])
    drawn = [_draw(axes, number, method, points) for number, (method, points) in enumerate(lines.items())]
    front = _draw_front(axes, [point for point in map(partial(_point, cost), rows) if point is not None])
    if len(lines) <= IN_LEGEND:
        axes.legend(fontsize=FONT_SIZE, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure
    axes.legend(handles=front, fontsize=FONT_SIZE, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    label_lines(figure, axes, drawn)
    return figure


def _lines(rows: Sequence[Row], cost: str) -> dict[str, list[Point]]:
    """Cost, accuracy and its interval of each method's cells."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        at, accuracy = row.figure(cost), row.accuracy()
        if at is not None and accuracy is not None:
            found.setdefault(row.method, []).append((at, accuracy.value, accuracy.low, accuracy.high))
    return found


def _point(cost: str, row: Row) -> tuple[float, float] | None:
    """Cost and accuracy of a cell; ``None`` for references, and where there is none."""
    at, accuracy = row.figure(cost), row.accuracy()
    return None if at is None or accuracy is None or row.cell.reference else (at, accuracy.value)


def _draw(axes: Axes, number: int, method: str, points: Sequence[Point]) -> Line:
    x, y, low, high = zip(*sorted(points), strict=True)
    errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
    color = f"C{number % 10}"
    axes.errorbar(
        x, y, yerr=errors, label=method, marker=MARKERS[number % len(MARKERS)], color=color, markersize=5, linewidth=1,
        elinewidth=0.5, alpha=0.85,
    )  # fmt: skip
    return Line(method, color, [*zip(x, y, strict=True)])


def _draw_front(axes: Axes, points: Sequence[tuple[float, float]]) -> list[Any]:
    front = [points[i] for i in pareto_front(points)]
    if not front:
        return []
    return axes.step(*zip(*front, strict=True), where="post", color="black", linewidth=2.5, alpha=0.3, label="front")


def _set_up(axes: Axes, label: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_xscale("symlog", linthresh=LINEAR_BELOW, linscale=0.3)  # so that 0 has a place, too
    axes.set_xticks(TICKS)
    axes.set_xlim(-0.002, 1.2)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"{label}, share of the full model's")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
