"""Your own questions, from a table in any of the usual formats, by a mapping of its columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from glimpse_lightning.data.arrow import folder_rows, parquet_rows
from glimpse_lightning.data.boxes import BoxFormat
from glimpse_lightning.data.columns import Columns, Wording
from glimpse_lightning.data.images import MAX_PIXELS
from glimpse_lightning.data.rows import ListRows, OnError, RowDataset, Rows
from glimpse_lightning.errors import GlimpseError


class Table(RowDataset):
    """Questions in a JSONL, JSON, CSV, TSV or Parquet file, in a folder that `datasets` saved, or in one of images.

    Args:
        path: the file or folder. A folder without `datasets`' own files is read as `datasets` reads folders: images
            beside a `metadata.csv` or `metadata.jsonl`, or Parquet files.
        columns: which column holds what.
        wording: how the prompt is worded.
        root: folder that image paths are relative to and may not leave; default: that of the file.
        split: of a folder with several; default: the only one.
        size: use the first so many rows only.
        on_error: what a row that cannot be used does: `raise`, or `skip` to leave it out and count it.
        require_answers: whether a row without an answer is an error.
        box_format: `normalised` (0 to 1, relative to width and height) or `pixels`, of the upright image.
        max_pixels: images with more pixels are refused.
    """

    def __init__(
        self,
        path: str,
        columns: Columns = Columns(),
        wording: Wording = Wording(),
        root: str | None = None,
        split: str | None = None,
        size: int | None = None,
        on_error: OnError = "raise",
        require_answers: bool = True,
        box_format: BoxFormat = "normalised",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.path = Path(path)
        self.skipped: list[str] = []
        if not self.path.exists():
            raise GlimpseError(f"{path}: no such file or folder; expected a table of questions.")
        super().__init__(
            read_rows(self.path, split, size, self.skipped if on_error == "skip" else None),
            source=path,
            columns=columns,
            wording=wording,
            root=Path(root) if root else self.path if self.path.is_dir() else self.path.parent,
            on_error=on_error,
            require_answers=require_answers,
            box_format=box_format,
            max_pixels=max_pixels,
        )
        if self.skipped:
            rank_zero_warn(f"{path}: skipped {len(self.skipped)} bad lines; the first: {self.skipped[0]}")


def read_rows(path: Path, split: str | None = None, size: int | None = None, skipped: list[str] | None = None) -> Rows:
    """The rows of a file or folder.

    Args:
        path: the file or folder.
        split: of a folder with several.
        size: the first so many rows.
        skipped: where to note what is wrong with broken lines of JSONL, which are then left out; default: they raise.

    Raises:
        GlimpseError: where the format is unknown or the contents are damaged.
    """
    if path.is_dir():
        return folder_rows(path, split, size)
    if path.suffix == ".parquet":
        return parquet_rows(path, size)
    try:
        if path.suffix in (".jsonl", ".json"):
            return ListRows((_json_lines(path, skipped) if path.suffix == ".jsonl" else _json_rows(path))[:size])
        if path.suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
                return ListRows(list(reader)[:size])
    except GlimpseError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise GlimpseError(f"{path}: cannot be read: {' '.join(str(error).split())}.") from error
    raise GlimpseError(
        f"{path}: expected .jsonl, .json, .csv, .tsv, .parquet or a folder, but its name ends in {path.suffix!r}."
    )


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise GlimpseError(f"{path}: expected JSON objects in one list.")
    return rows


def _json_lines(path: Path, skipped: list[str] | None) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):  # U+2028 is legal in JSON
        if not line.strip():
            continue
        try:
            row, problem = json.loads(line), "no JSON object"
        except json.JSONDecodeError as error:
            row, problem = None, f"broken JSON ({error.msg})"
        if isinstance(row, dict):
            rows.append(row)
            continue
        message = f"{path}, line {number}: {problem}; mend the line."
        if skipped is None:
            raise GlimpseError(message)
        skipped.append(message)
    return rows
