"""Figures of a suite from its predictions, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from glimpse_lightning.evaluation.intervals import mean_estimate
from glimpse_lightning.evaluation.predictions import Prediction
from glimpse_lightning.metrics import Agreement, AnswerMetric, Retention
from glimpse_lightning.runtime.terminal import UNKNOWN, filled, plain, show

INTERVALS = "Brackets: 95 % intervals in which questions about one image count together."
WITH_INTERVALS = ("accuracy", "full_accuracy", "difference")


def task_figures(predictions: Sequence[Prediction], metric: AnswerMetric) -> dict[str, Any]:
    """Figures of one task; its answers are scored anew.

    ``accuracy`` and ``full_accuracy`` are the mean scores of the pruned and of the full model, each with its 95 %
    ``..._interval`` (:func:`~glimpse_lightning.evaluation.intervals.mean_estimate`); ``difference`` is pruned less full
    on the same questions, ``images`` the number of their images, ``metric`` all figures of the task's metric, without
    intervals. Unknown figures are ``None``: scores of hidden test splits, those of the full model if it did not answer,
    and ``images`` if a prediction does not name its image.
    """
    scored = [p for p in predictions if p.references]
    asked = [p for p in scored if p.full_prediction is not None]
    scores, full = _scores(scored, metric), _scores(asked, metric, full=True)
    paired = dict(zip((p.id for p in scored), scores, strict=True))
    difference = [paired[p.id] - score for p, score in zip(asked, full, strict=True)]
    images = {p.image for p in predictions if p.total or p.image}
    out: dict[str, Any] = {"n": len(predictions), "images": None if "" in images else len(images)}
    for name, values, of in (
        ("accuracy", scores, scored), ("full_accuracy", full, asked), ("difference", difference, asked)
    ):  # fmt: skip
        estimate = mean_estimate(values, [p.image for p in of], -1.0 if name == "difference" else 0.0) if of else None
        out[name] = sum(values) / len(values) if values else None
        out[f"{name}_interval"] = (estimate.low, estimate.high) if estimate else None
    out["relative_accuracy"] = out["accuracy"] / out["full_accuracy"] if out["full_accuracy"] else None
    out["agreement"] = _agreement([p for p in predictions if p.full_prediction is not None])
    out["retention"] = _retention(predictions)
    out["metric"] = _computed(scored, metric)
    out["full_metric"] = _computed(asked, metric, full=True)
    return out


def suite_figures(tasks: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Unweighted means over tasks; ``None`` if no task has the figure."""
    out: dict[str, Any] = {"n": sum(figures["n"] for figures in tasks.values())}
    for name in ("accuracy", "full_accuracy", "difference", "agreement", "retention"):
        values = [figures[name] for figures in tasks.values() if figures[name] is not None]
        out[name] = sum(values) / len(values) if values else None
    out["relative_accuracy"] = out["accuracy"] / out["full_accuracy"] if out["full_accuracy"] else None
    return out


def print_suite(tasks: Mapping[str, dict[str, Any]], console: Console | None = None, remark: str = "") -> None:
    """Print a table with a row for each task and one for their mean, and the full model next to the pruned one.

    Args:
        tasks: figures of each task, by its name.
        console: console that prints the table; default: the terminal.
        remark: a sentence for the caption.
    """
    unknown = [name for name, figures in tasks.items() if figures["images"] is None]
    alone = f" Predictions of {', '.join(unknown)} name no image: they count one by one." if unknown else ""
    figures_of = {**tasks, "mean of tasks": suite_figures(tasks)}
    bracketed = any(figures.get(f"{key}_interval") for figures in tasks.values() for key in WITH_INTERVALS)
    caption = f"{f'{INTERVALS}{alone}' if bracketed else ''} {remark}".strip()
    lines = [
        [
            name, str(figures["n"]), *(_with_interval(figures, key) for key in WITH_INTERVALS),
            *(_percent(figures[key]) for key in ("relative_accuracy", "agreement", "retention")),
        ]
        for name, figures in figures_of.items()
    ]  # fmt: skip
    shares = ("pruned", "full", "difference", "relative", "agreement", "retention")
    header, lines = filled(["task", "n", *shares], lines)
    table = Table(title="suite", caption=caption, padding=(0, 0, 0, 1))
    table.add_column("task", no_wrap=True)
    for name in header[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for name, *cells in lines:
        table.add_row(plain(name), *cells)
    show(table, console=console)


def _scores(predictions: Sequence[Prediction], metric: AnswerMetric, full: bool = False) -> list[float]:
    return [metric.score(_said(p, full), p.references) for p in predictions]


def _said(prediction: Prediction, full: bool) -> str:
    return (prediction.full_prediction or "") if full else prediction.prediction


def _computed(predictions: Sequence[Prediction], metric: AnswerMetric, full: bool = False) -> dict[str, float] | None:
    if not predictions:
        return None
    metric.reset()
    metric.update(
        [_said(p, full) for p in predictions],
        [p.references for p in predictions],
        ids=[p.id for p in predictions],
        families=[p.family for p in predictions],
    )
    value = metric.compute()
    name = type(metric).__name__
    return {key: float(item) for key, item in (value if isinstance(value, dict) else {name: value}).items()}


def _agreement(predictions: Sequence[Prediction]) -> float | None:
    if not predictions:
        return None
    metric = Agreement()
    metric.update([p.prediction for p in predictions], [p.full_prediction or "" for p in predictions])
    return float(metric.mean())


def _retention(predictions: Sequence[Prediction]) -> float | None:
    metric = Retention(sync_on_compute=False)  # every rank has read the predictions of all
    metric.update(torch.tensor([p.kept for p in predictions]), torch.tensor([p.total for p in predictions]))
    mean = float(metric.compute()["mean"])
    return None if mean != mean else mean


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def _with_interval(figures: Mapping[str, Any], key: str) -> str:
    interval = figures.get(f"{key}_interval")
    brackets = f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else ""
    return _percent(figures[key]) + brackets
