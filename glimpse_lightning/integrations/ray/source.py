"""The input of a batch job: a table in a file, in a folder or on the Hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import ray.data
from typing_extensions import override

from glimpse_lightning.data.tables.arrow import ArrowRows, cache_folder, hub_rows, is_saved
from glimpse_lightning.data.tables.folder import ABOUT, METADATA, SPLIT
from glimpse_lightning.data.tables.rows import Rows
from glimpse_lightning.data.tables.table import read_rows
from glimpse_lightning.data.tables.text_files import ENDINGS
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.terminal import counted

LISTED = 5
"""Most ids that an error names."""


class Source(ABC):
    """A table whose rows the machines of a cluster read.

    Attributes:
        name: name of the table in errors.
        schema: names and types of its columns.
    """

    name: str
    schema: pa.Schema

    @abstractmethod
    def column(self, name: str) -> Sequence[Any]:
        """The cells of a column."""

    @abstractmethod
    def dataset(self) -> ray.data.Dataset:
        """The rows as a dataset of Ray's, which reads them when it runs."""

    def ids(self, column: str) -> list[str]:
        """Names of all rows.

        Raises:
            GlimpseError: where some are missing, or are not unique.
        """
        cells = self.column(column)
        if missing := sum(cell is None or cell == "" for cell in cells):
            raise GlimpseError(
                f"{self.name}: expected an id in each row, but {counted(missing, 'row')} of {len(cells)} have none in "
                f"column `{column}`, and answers are kept by id. Give each row an id of its own."
            )
        often = Counter(map(str, cells))
        if twice := [repr(name) for name, times in often.items() if times > 1]:
            more = f" and {len(twice) - LISTED} more" if len(twice) > LISTED else ""
            raise GlimpseError(
                f"{self.name}: expected ids that differ, but several rows have the id {', '.join(twice[:LISTED])}{more}"
                f" in column `{column}`, and answers are kept by id. Rename these rows, or name another column: "
                "--columns '{id: COLUMN}'."
            )
        return list(often)

    def holding_files(self, columns: Sequence[str]) -> list[str]:
        """Those of the ``columns`` whose cells are files, not their paths."""
        return [name for name in columns if not _is_text(self.schema.field(name).type)]


class Shards(Source):
    """Files in Parquet, which Ray reads in pieces."""

    def __init__(self, name: str, files: list[str]) -> None:
        self.name, self.files = name, files
        try:
            self.table = pyarrow.dataset.dataset(files)
        except (OSError, pa.ArrowInvalid) as error:
            raise GlimpseError(f"{name}: cannot be read as Parquet: {' '.join(str(error).split())}") from error
        self.schema = self.table.schema

    @override
    def column(self, name: str) -> Sequence[Any]:
        return self.table.to_table(columns=[name])[name].to_pylist()

    @override
    def dataset(self) -> ray.data.Dataset:
        return ray.data.read_parquet(self.files)


class Saved(Source):
    """A table that ``datasets`` keeps in files, which all machines find under the same names."""

    def __init__(self, name: str, rows: ArrowRows) -> None:
        self.name, self.rows = name, rows
        self.schema = rows.table.features.arrow_schema

    @override
    def column(self, name: str) -> Sequence[Any]:
        return self.rows.column(name)

    @override
    def dataset(self) -> ray.data.Dataset:
        numbers = ray.data.range(len(self.rows))  # pickled with the function, the table is the names of its files
        return numbers.map_batches(partial(_picked, table=self.rows.table), batch_format="pyarrow")


class InMemory(Source):
    """A table read from a text file: JSONL, JSON, CSV or TSV."""

    def __init__(self, name: str, rows: Rows) -> None:
        self.name = name
        self.table = pa.table({column: _array(name, column, rows.column(column)) for column in rows.names})
        self.schema = self.table.schema

    @override
    def column(self, name: str) -> Sequence[Any]:
        return self.table[name].to_pylist()

    @override
    def dataset(self) -> ray.data.Dataset:
        return ray.data.from_arrow(self.table)


def find_source(name: str, split: str | None = None, subset: str | None = None) -> Source:
    """The table of a name.

    Args:
        name: file, folder, or name of a dataset on the Hub.
        split: split of a table with several; of a dataset on the Hub `train` by default.
        subset: configuration of a dataset on the Hub.

    Raises:
        GlimpseError: where there is no such table, or it cannot be read.
    """
    path = Path(name)
    if split is None and (files := parquet_shards(path)):
        return Shards(name, files)
    if path.exists():
        rows = read_rows(path, split)
    elif name.count("/") == 1 and not path.suffix:
        rows = hub_rows(name, subset, split or "train")
    else:
        raise GlimpseError(
            f"{name}: no such file or folder; expected a table of questions (.parquet, .jsonl, .csv, a folder, ...), "
            "or a dataset on the Hub as OWNER/NAME."
        )
    return Saved(name, rows) if isinstance(rows, ArrowRows) else InMemory(name, rows)


def image_folder(name: str) -> Path:
    """The folder that a table's image paths may not leave, unless another is named."""
    path = Path(name)
    return (path if path.is_dir() else path.parent) if path.exists() else cache_folder()


def parquet_shards(path: Path) -> list[str]:
    """The Parquet files of a table that consists of nothing else; empty for every other table."""
    if path.is_file():
        return [str(path.resolve())] if path.suffix.lower() == ".parquet" else []
    if is_saved(path):
        return []
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in (*ENDINGS, ".parquet")]
    names = [str(file.relative_to(path)) for file in files if file.name not in ABOUT]
    others = [name for name in names if not name.lower().endswith(".parquet") or SPLIT.search(name) or name in METADATA]
    return [] if others else [str((path / name).resolve()) for name in names]


def _picked(batch: pa.Table, table: Any) -> pa.Table:
    """The rows of a table whose numbers a batch holds."""
    return table[batch["id"].to_pylist()]


def _array(name: str, column: str, cells: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise GlimpseError(
            f"{name}: expected cells of one type in column `{column}`, but got several ({error}). Write a text, or a "
            "list, in all rows."
        ) from None


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column's cells are texts, lists of texts, or empty."""
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    return pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_null(inner)
