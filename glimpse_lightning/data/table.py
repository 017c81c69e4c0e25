"""Your own questions, from a table in any of the usual formats, by a mapping of its columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

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
        if not self.path.exists():
            raise GlimpseError(f"{path}: no such file or folder; expected a table of questions.")
        super().__init__(
            read_rows(self.path, split, size),
            source=path,
            columns=columns,
            wording=wording,
            root=Path(root) if root else self.path if self.path.is_dir() else self.path.parent,
            on_error=on_error,
            require_answers=require_answers,
            box_format=box_format,
            max_pixels=max_pixels,
        )


def read_rows(path: Path, split: str | None = None, size: int | None = None) -> Rows:
    """The rows of a file or folder.

    Raises:
        GlimpseError: where the format is unknown or the contents are damaged.
    """
    if path.is_dir():
        return folder_rows(path, split, size)
    if path.suffix == ".parquet":
        return parquet_rows(path, size)
    try:
        if path.suffix in (".jsonl", ".json"):
            return ListRows(_json_rows(path)[:size])
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
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        rows = json.loads(text)
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 is legal in JSON
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise GlimpseError(f"{path}, line {number}: broken JSON ({error.msg}); mend the line.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise GlimpseError(f"{path}: expected JSON objects, one a line (.jsonl) or in one list (.json).")
    return rows
