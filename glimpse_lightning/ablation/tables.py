"""Tables of runs as Markdown, and their figures as text."""

from __future__ import annotations

from collections.abc import Sequence

from glimpse_lightning.evaluation.intervals import Estimate
from glimpse_lightning.runtime.terminal import UNKNOWN, filled


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> list[str]:
    """Lines of a table, without columns of figures that no row has; the first ``labels`` columns stay."""
    header, rows = filled(header, rows, labels)
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def _line(columns: Sequence[str]) -> str:
    return "| " + " | ".join(column.replace("|", r"\|") for column in columns) + " |"


def percent(value: float | None) -> str:
    """A share with one decimal."""
    return UNKNOWN if value is None else f"{value:.1%}"


def interval(estimate: Estimate | None, sign: str = "") -> str:
    """An estimate in percent with its interval; ``sign`` is that of the format, ``+`` for differences."""
    if estimate is None:
        return UNKNOWN
    low, high = (f"{100 * value:{sign}.1f}" for value in (estimate.low, estimate.high))
    return f"{100 * estimate.value:{sign}.1f} [{low}, {high}]"
