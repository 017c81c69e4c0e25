"""A paper's figures next to measured ones, on the terminal and as a file to send in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from glimpse_lightning.reproduction.tables import Figure, Table
from glimpse_lightning.runtime.machine import describe, device_name
from glimpse_lightning.runtime.paths import read_json
from glimpse_lightning.runtime.run_folder import RESULTS
from glimpse_lightning.runtime.terminal import figures_table, show
from glimpse_lightning.runtime.whole_files import write_text

NOT_PUBLISHED, NOT_RUN = "not published", "not yet run"
HARMLESS = ("--data.places.", "--data.num_workers", "--data.eval_batch_size", "--trainer.")
"""Beginnings of options that change no figure of a table."""


@dataclass(frozen=True)
class Row:
    """A figure, measured (``None``: not), and its verdict: ``pass``, ``fail``, or why there is none."""

    figure: Figure
    measured: float | None
    verdict: str

    def cells(self) -> list[str]:
        """The row of a table."""
        paper = NOT_PUBLISHED if self.figure.paper is None else f"{self.figure.paper:g} ± {self.figure.tolerance:g}"
        return [self.figure.label, paper, NOT_RUN if self.measured is None else f"{self.measured:.4g}", self.verdict]


def rows(table: Table, found: Mapping[str, Mapping[str, float]], options: Sequence[str]) -> list[Row]:
    """A row for each figure of a table.

    Args:
        found: measured figures of each run.
        options: options of the runs that are not the table's own. With one that may change a figure, such as a
            ``--limit``, the runs are a rehearsal, and nothing is compared.
    """
    rehearsal = any(flag.startswith("--") and not flag.startswith(HARMLESS) for flag in options)
    values = [found[figure.run].get(figure.key) for figure in table.figures]
    return [
        Row(each, value, _verdict(each, value, rehearsal)) for each, value in zip(table.figures, values, strict=True)
    ]


def _verdict(figure: Figure, value: float | None, rehearsal: bool) -> str:
    if value is None:
        return NOT_RUN
    if figure.paper is None:
        return NOT_PUBLISHED
    if rehearsal:
        return "a rehearsal"
    return "pass" if abs(value - figure.paper) <= figure.tolerance else "fail"


def print_report(table: Table, found: Mapping[str, Mapping[str, float]], options: Sequence[str]) -> list[Row]:
    """Show the table; returns its rows."""
    all_rows = rows(table, found, options)
    header = ["figure", "paper", "measured", "verdict"]
    whys = {row.figure.why: row.figure.label for row in all_rows if row.figure.paper is not None}
    notes = [f"Tolerance of {label!r} and alike: {why}." for why, label in whys.items()]
    show(figures_table(table.title, header, [row.cells() for row in all_rows], wraps=True), *notes)
    return all_rows


def write_report(
    root: Path, table: Table, all_rows: Sequence[Row], plan: Mapping[str, Any], runs: Sequence[Path]
) -> None:
    """Write ``reproduction.json``, with all figures and their origin, and ``reproduction.md``, for a pull request."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    origin = {"machine": device_name(device), **describe(device)}
    kept = ("command_line", "date", "commit", "dirty", "versions", "dtype", "precision", "data", "processor")
    results = [{name: read_json(run / RESULTS).get(name) for name in kept} for run in runs]
    figures = [{**asdict(row.figure), "measured": row.measured, "verdict": row.verdict} for row in all_rows]
    record = {"title": table.title, "plan": plan, "figures": figures, "runs": results, "origin": origin}
    write_text(root / "reproduction.json", json.dumps(record, indent=2, default=str) + "\n")
    lines = [f"# {table.title}", "", "| figure | paper | measured | verdict |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row.cells())} |" for row in all_rows]
    models = [f"{plan[part]['name']} at {plan[part]['revision'] or 'a folder'}" for part in ("backbone", "pruner")]
    options = f"options: {' '.join(plan['options']) or 'none'}"
    about = [" with ".join(models), options, origin["machine"], origin["date"], f"commit {origin['commit']}"]
    lines += ["", f"{'; '.join(map(str, about))}."]
    write_text(root / "reproduction.md", "\n".join(lines) + "\n")
    show(f"Written: {root / 'reproduction.md'} and {root / 'reproduction.json'}, for a pull request.")
