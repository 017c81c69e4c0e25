"""The Markdown of what ``benchmarks/gpu.py`` has measured so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glimpse_lightning.bench import report

TITLES = {
    "article": "The article's efficiency table",
    "equality": "Keep-all against Hugging Face, and the overhead without a pruner",
    "prefill": "Prefill over lengths, K and retention",
    "decoding": "Decoding at large batches",
    "scoring": "Every scorer",
    "training": "Training steps",
    "main_job": "README's main command",
    "tests": "pytest -m gpu",
}


def markdown(record: Mapping[str, Any]) -> str:
    """Head, goals, a section of each part, and the figures of all prefills."""
    parts = record["parts"]
    lines = [*report.head(record), "", "## Goals", ""]
    goals = [goal for part in parts.values() for goal in part.get("goals", [])]
    lines += _table(["goal", "got", "met"], [[what, show(got), "yes" if met else "**no**"] for what, got, met in goals])
    for name, part in parts.items():
        lines += [f"## {TITLES.get(name, name)}", "", f"{part['seconds']:.0f} s.", ""]
        if "error" in part:
            lines += ["```text", part["error"].strip(), "```", ""]
        if part.get("rows"):
            columns = list(dict.fromkeys(column for row in part["rows"] for column in row))
            lines += _table(columns, [[show(row.get(column, "")) for column in columns] for row in part["rows"]])
        if part.get("note"):
            lines += [part["note"], ""]
    groups = [group for part in parts.values() for group in part.get("groups", [])]
    return "\n".join([*lines, *(report.figures(groups) if groups else [])])


def show(value: Any) -> str:
    """A cell: an interval as ``0.98 [0.97, 0.99]``, a number with four digits."""
    if isinstance(value, Mapping):
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [report.line(columns), report.line(["---"] * len(columns)), *map(report.line, rows), ""]
