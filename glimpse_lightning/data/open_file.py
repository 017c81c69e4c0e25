"""The dataset that reads a file or a folder of questions, by its name."""

from __future__ import annotations

from pathlib import Path

from torch.utils.data import Dataset

from glimpse_lightning.data.jsonl import JSONL
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.data.tables.table import Table

READERS: dict[str, type[JSONL] | type[Table]] = {
    ".jsonl": JSONL, ".json": Table, ".csv": Table, ".tsv": Table, ".parquet": Table
}  # fmt: skip
"""Datasets by the ending of a file's name."""


def class_name(path: str) -> str | None:
    """Name of the dataset that reads a file called ``path``, or the folder that lies there; ``None`` if none does."""
    kind = READERS.get(Path(path).suffix.lower(), Table if Path(path).is_dir() else None)
    return None if kind is None else kind.__name__


def open_file(path: str) -> Dataset[Sample] | None:
    """The questions of a file, with or without answers; ``None`` if no dataset reads files of that name."""
    kind = READERS.get(Path(path).suffix.lower())
    return None if kind is None else kind(path, require_answers=False)
