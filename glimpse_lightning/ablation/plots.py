"""Accuracy against cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glimpse_lightning.ablation.rows import Row
from glimpse_lightning.ablation.statistics import pareto_front
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.whole_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {"kv_retention": ("tokens", "visual tokens kept (KV at decode)"), "flops_ratio": ("flops", "FLOPs of prefill")}
MARKERS = "osD^v<>ph*XP"
TICKS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
LINEAR_BELOW = 0.02


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """``pareto_tokens`` and ``pareto_flops`` as PNG and SVG; a line for each method, its cells with their intervals.
    None where no cell has an accuracy.

    Raises:
        GlimpseError: where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise GlimpseError(
            "Plots need matplotlib, which is not installed: `pip install 'glimpse-lightning[plots]'`, then run the "
            "same command again; finished cells are not run again."
        ) from None
    if all(row.accuracy() is None for row in rows):
        return []
    written = []
    for cost, (name, label) in COSTS.items():
        figure = Figure(figsize=(11, 6), layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.add_subplot(), rows, cost, label)
        for suffix in (".png", ".svg"):
            path = folder / f"pareto_{name}{suffix}"
            with replacing(path) as draft:
                figure.savefig(draft, format=suffix[1:], dpi=150)
            written.append(path)
    return written


def _draw(axes: Axes, rows: Sequence[Row], cost: str, label: str) -> None:
    from matplotlib.ticker import PercentFormatter

    points: dict[str, list[tuple[float, float, float, float]]] = {}
    methods: list[tuple[float, float]] = []
    for row in rows:
        at, accuracy = row.figure(cost), row.accuracy()
        if at is not None and accuracy is not None:
            points.setdefault(row.method, []).append((at, accuracy.value, accuracy.low, accuracy.high))
            methods += [] if row.cell.reference else [(at, accuracy.value)]
    for index, (method, found) in enumerate(points.items()):
        x, y, low, high = zip(*sorted(found), strict=True)
        errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        axes.errorbar(
            x, y, yerr=errors, label=method, marker=MARKERS[index % len(MARKERS)], color=f"C{index % 10}",
            markersize=5, linewidth=1, elinewidth=0.5, alpha=0.85,
        )  # fmt: skip
    front = [methods[i] for i in pareto_front(methods)]
    if front:
        axes.step(*zip(*front, strict=True), where="post", color="black", linewidth=2.5, alpha=0.3, label="front")
    axes.set_xscale("symlog", linthresh=LINEAR_BELOW, linscale=0.3)  # so that 0 has a place, too
    axes.set_xticks(TICKS)
    axes.set_xlim(-0.002, 1.2)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"{label}, share of the full model's")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
