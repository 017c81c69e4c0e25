"""Rows of text files: CSV, TSV, JSON, and JSON Lines."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from glimpse_lightning.data.tables.rows import ListRows
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import read_text

ENDINGS = (".jsonl", ".json", ".csv", ".tsv")
"""Endings of the files' names."""
LARGEST_CELL = 2**30
"""Largest number of characters in a cell; Python's default of 131,072 is less than an image."""


def text_rows(path: Path, skipped: list[str] | None = None, size: int | None = None) -> ListRows:
    """Rows of a file whose name has one of the ``ENDINGS``.

    Args:
        path: the file.
        skipped: list that gets messages about broken lines, which are then left out; default: broken lines raise.
        size: number of rows, from the first one on; default: all.

    Raises:
        GlimpseError: if the contents are damaged.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".jsonl":
            return _json_lines(path, skipped, size)
        return ListRows(_json_rows(path)[:size]) if suffix == ".json" else _delimited(path, skipped, size)
    except GlimpseError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise GlimpseError(f"{path}: cannot be read: {' '.join(str(error).split())}.") from error


def _delimited(path: Path, skipped: list[str] | None, size: int | None) -> ListRows:
    """Rows of a CSV, whose cells may be quoted, or of a TSV, where a quote is a plain character for most writers. A
    TSV's cell that is quoted because of the quotes inside (``"[""a""]"``) is unquoted.
    """
    csv.field_size_limit(LARGEST_CELL)  # large enough for images in base64
    tabs = path.suffix.lower() == ".tsv"
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    rows, lines = list[dict[str, Any]](), list[int]()
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, **options)
        while True:
            problem = ""
            try:
                row = next(reader)
                problem = "more cells than columns" if None in row else ""
            except StopIteration:
                return ListRows(rows[:size], lines[:size])
            except csv.Error as error:
                problem, row = str(error), {}
            if not problem:
                rows.append({name: _unquoted(cell) for name, cell in row.items()} if tabs else row)
                lines.append(reader.line_num - sum(cell.count("\n") for cell in row.values() if cell))
                continue
            message = f"{path}, line {reader.line_num + (not row)}: {problem}; mend the line."
            if skipped is None:
                raise GlimpseError(message)
            skipped.append(message)


def _unquoted(cell: str | None) -> str | None:
    if cell is None or len(cell) < 2 or not (cell.startswith('"') and cell.endswith('"')):
        return cell
    inside = cell[1:-1]
    quoted = '""' in inside and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if quoted else cell


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(read_text(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise GlimpseError(f"{path}: expected JSON objects in one list.")
    return rows


def _json_lines(path: Path, skipped: list[str] | None, size: int | None) -> ListRows:
    rows, lines = list[dict[str, Any]](), list[int]()
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # U+2028 is legal in JSON
        if not line.strip():
            continue
        try:
            row, problem = json.loads(line), "no JSON object"
        except json.JSONDecodeError as error:
            row, problem = None, f"broken JSON ({error.msg})"
        if isinstance(row, dict):
            rows.append(row)
            lines.append(number)
            continue
        message = f"{path}, line {number}: {problem}; mend the line."
        if skipped is None:
            raise GlimpseError(message)
        skipped.append(message)
    return ListRows(rows[:size], lines[:size])
