"""An ablation at a glance: one figure by method and budget, as papers print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glimpse_lightning.ablation.latex import best_and_ties
from glimpse_lightning.ablation.rows import Row
from glimpse_lightning.ablation.tables import percent
from glimpse_lightning.evaluation.intervals import Estimate
from glimpse_lightning.runtime.terminal import UNKNOWN


def axes(rows: Sequence[Row]) -> list[str]:
    """Names of the axes, in order of appearance."""
    return list(dict.fromkeys(axis for row in rows for axis in row.cell.labels))


@dataclass(frozen=True)
class Glance:
    """A figure by method and by value of the one other axis.

    Attributes:
        axis: that axis.
        values: its values.
        figure: name of the figure in ``results.json``.
        cells: for each method the row at each value, ``None`` where there is none, and its rows without a value.
    """

    axis: str
    values: Sequence[Any]
    figure: str
    cells: Mapping[str, tuple[Sequence[Row | None], Sequence[Row]]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Glance | None:
        """``None`` unless there are ``methods`` and exactly one other axis."""
        others = [axis for axis in axes(rows) if axis != "methods"]
        if len(others) != 1 or all("methods" not in row.cell.labels for row in rows):
            return None
        values = list(dict.fromkeys(row.cell.labels[others[0]] for row in rows if others[0] in row.cell.labels))
        figure = "accuracy" if any(row.figure("accuracy") is not None for row in rows) else "agreement"
        known = [row for row in rows if row.figure(figure) is not None]
        cells: dict[str, tuple[Sequence[Row | None], Sequence[Row]]] = {}
        for method in dict.fromkeys(row.method for row in rows):
            mine = [row for row in known if row.method == method]
            at = {row.cell.labels[others[0]]: row for row in mine if others[0] in row.cell.labels}
            cells[method] = (
                [at.get(value) for value in values],
                [row for row in mine if others[0] not in row.cell.labels],
            )
        return cls(others[0], values, figure, cells)

    @property
    def header(self) -> list[str]:
        first = "methods" if self.figure == "accuracy" else f"methods ({self.figure})"
        return [first, *(f"{self.axis} {value}" for value in self.values), "at its own share"]

    def lines(self) -> list[list[str]]:
        """Cells as text: percent, and for rows without a value the share of tokens kept."""
        out = []
        for method, (at, own) in self.cells.items():
            shares = [f"{self._shown(row)} at {percent(row.figure('kv_retention'))}" for row in own]
            out.append([method, *map(self._shown, at), ", ".join(shares) or UNKNOWN])
        return out

    def best(self) -> set[tuple[int, int]]:
        """Line and column of the highest figure of each value, and of those that are not told from it; references do
        not take part.
        """
        lines = [at for at, _ in self.cells.values()]
        return {(line, 1 + column) for column in range(len(self.values))
                for line in best_rows([at[column] for at in lines], self.figure)}  # fmt: skip

    def _shown(self, row: Row | None) -> str:
        value = None if row is None else row.figure(self.figure)
        return UNKNOWN if value is None else f"{100 * value:.1f}"


def best_rows(rows: Sequence[Row | None], figure: str) -> set[int]:
    """Places of the best rows and of those that are not told from them; references do not take part."""
    ranked = [None if row is None or row.cell.reference else row.figure(figure) for row in rows]

    def gain(place: int, other: int) -> Estimate | None:
        row, best = rows[place], rows[other]
        return row.gain(best) if row is not None and best is not None else None

    return best_and_ties(ranked, gain)
