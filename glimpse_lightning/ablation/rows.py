"""The rows of an ablation's tables: the results of each cell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from glimpse_lightning.ablation.cells import Cell
from glimpse_lightning.ablation.runs import CellFolders
from glimpse_lightning.ablation.statistics import paired_difference
from glimpse_lightning.evaluation.intervals import Estimate, mean_estimate
from glimpse_lightning.runtime.run_folder import RESULTS

ALL = "all"
"""The family that every question belongs to."""


@dataclass(frozen=True)
class Row:
    """A cell and its results.

    Attributes:
        cell: the cell.
        run: folder of its finished run; ``None`` where it has none.
        error: the reason why it failed, in one line; ``None`` where it did not.
        figures: the figures of ``results.json``, by family and name.
        scores: the answers' scores, by family and question id.
        images: name of each question's image, by question id; ``""`` where it has none, or an older version ran.
        remarks: what the run said about its figures.
        costs: time and memory of a question, of the pruned and of Hugging Face's own model, by name; empty where they
            were not measured.
        timed: number of questions that they are of.
        skipped: messages about rows that the run left out.
    """

    cell: Cell
    run: Path | None
    error: str | None
    figures: Mapping[str, Mapping[str, float]]
    scores: Mapping[str, Mapping[str, float]]
    images: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    timed: int = 0
    skipped: Sequence[str] = ()

    @property
    def status(self) -> str:
        """``finished``, ``failed`` or ``missing``."""
        return "finished" if self.run is not None else "failed" if self.error is not None else "missing"

    @property
    def method(self) -> str:
        """The cell's method, or the ablation's only one."""
        return str(self.cell.labels.get("methods", "recipe"))

    def figure(self, name: str) -> float | None:
        """A figure over all questions; ``None`` where it is not defined."""
        return self.figures.get(ALL, {}).get(name)

    def accuracy(self, family: str = ALL) -> Estimate | None:
        """Mean score with its confidence interval; ``None`` without a run."""
        scores = self.scores.get(family)
        return mean_estimate(list(scores.values()), [self.images.get(name, "") for name in scores]) if scores else None

    def gain(self, reference: Row, family: str = ALL) -> Estimate | None:
        """Paired difference in score to ``reference``; ``None`` where one of the two has no run."""
        return paired_difference(self.scores.get(family, {}), reference.scores.get(family, {}), self.images)


def above_floor(rows: Sequence[Row], row: Row, family: str = ALL) -> float | None:
    """Accuracy of a row above its floor, as a share of what the first row has above it: 0 at the floor, 1 at the
    first row's accuracy.

    The floor is the row of the method that the cell names, at the same values of the other axes where it has them.
    ``None`` where there is no such row, one of the three has no run, or the first row is not above the floor.
    """
    same = [
        other
        for other in rows
        if other.method == row.cell.floor
        and all(row.cell.labels.get(axis) == label for axis, label in other.cell.labels.items() if axis != "methods")
    ]
    if len(same) != 1:
        return None
    found = [each.scores.get(family) for each in (row, same[0], rows[0])]
    if not all(found):
        return None
    value, floor, most = (mean(scores.values()) for scores in found if scores)
    return (value - floor) / (most - floor) if most > floor else None


def read_rows(cells: Sequence[Cell], folders: CellFolders) -> list[Row]:
    """A row for each cell."""
    return [_row(cell, folders) for cell in cells]


def _row(cell: Cell, folders: CellFolders) -> Row:
    run = folders.finished(cell)
    if run is None:
        error = folders.error(cell)
        return Row(cell, None, None if error is None else _last_line(error), {}, {})
    results = json.loads((run / RESULTS).read_text(encoding="utf-8"))
    scores: dict[str, dict[str, float]] = {ALL: {}}
    images: dict[str, str] = {}
    predictions = run / "predictions.jsonl"
    lines = predictions.read_text(encoding="utf-8").split("\n") if predictions.is_file() else []
    for line in filter(None, lines):
        record = json.loads(line)
        images[record["id"]] = record.get("image", "")
        for family in filter(None, (ALL, record["family"])) if record["score"] is not None else ():
            scores.setdefault(family, {})[record["id"]] = record["score"]
    figures = {ALL: {"n": results["n"], **results["metrics"]}, **results["families"]}
    numbers = {family: _numbers(values) for family, values in figures.items()}
    told = results.get("costs") or {}
    costs = {name: value for name, value in told.items() if isinstance(value, Mapping)}
    skipped = results.get("skipped", ())
    return Row(
        cell, run, None, numbers, scores, images, results.get("remarks", ()), costs, told.get("questions", 0), skipped
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


def _last_line(error: str) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else "unknown error"
