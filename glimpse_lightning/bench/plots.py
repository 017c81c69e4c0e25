"""Measured ratios to Hugging Face's forward against those that theory predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.whole_files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"prefill": "prefill of the decoder", "ttft": "time to first token", "tpot": "time per further token"}
MARKERS = "osD^v<>phX"


def write_plot(record: Mapping[str, Any], path: Path) -> None:
    """A panel for each of prefill, TTFT and TPOT: a point per variant with its 95 % interval, and the line of theory.

    Raises:
        GlimpseError: where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise GlimpseError(
            "The plot needs matplotlib, which is not installed: `pip install 'glimpse-lightning[plots]'`. The figures "
            "are written."
        ) from None
    figure = Figure(figsize=(14, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        _draw(axes, record, name)
        axes.set_title(title)
    with replacing(path) as draft:
        figure.savefig(draft, format="png", dpi=150)


def _draw(axes: Axes, record: Mapping[str, Any], name: str) -> None:
    top = 1.1
    for index, group in enumerate(group for group in record["groups"] if "variants" in group):
        rows = [row["figures"] for row in group["variants"]]
        hf = rows[0][name]["median"]
        points = [(row[name]["theory"] / hf, row[name]["vs_hf"]) for row in rows[1:]]
        x, y = [at for at, _ in points], [ratio["value"] for _, ratio in points]
        low = [ratio["value"] - ratio["low"] for _, ratio in points]
        high = [ratio["high"] - ratio["value"] for _, ratio in points]
        label = group.get("data") or f"batch {group['batch']}, {group['visual_tokens']} visual"
        axes.errorbar(x, y, yerr=[low, high], fmt=MARKERS[index % len(MARKERS)], label=label, markersize=5, alpha=0.8)
        top = max(top, *x, *y)
    axes.plot([0, top], [0, top], color="black", linewidth=1, alpha=0.4)
    axes.set_xlim(0, top * 1.02)
    axes.set_ylim(0, top * 1.02)
    axes.set_xlabel("theory: ratio to Hugging Face's forward")
    axes.set_ylabel("measured ratio")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
