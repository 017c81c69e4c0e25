"""Rows of a folder, where it is clear which of its files hold the questions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from glimpse_lightning.data.tables.arrow import is_saved, saved_rows
from glimpse_lightning.data.tables.columns import as_list, is_missing
from glimpse_lightning.data.tables.rows import ListRows, Rows
from glimpse_lightning.data.tables.text_files import ENDINGS, text_rows
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import read_text

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Names of the file that says, next to images, what is asked about each."""
ABOUT = ("dataset_info.json", "dataset_infos.json")
"""Files of `datasets` that hold no rows."""
FILE = re.compile(r"(?:(.+)_)?file_name(s?)")
"""Columns of paths in a metadata file: `file_name` is the column `image`, `left_file_name` the column `left`."""
SPLIT = re.compile(r"(?:^|[^a-z])(train|test|val|valid|validation|dev|eval)(?:[^a-z]|$)", re.IGNORECASE)
"""Words in a path from which `datasets` takes a file's split."""
LISTED = 5


class MetadataRows(ListRows):
    """Rows of a metadata file, with its images' paths in the column ``image``.

    Args:
        file: the metadata file.
        rows: its rows.
        folder: folder that the paths are made relative to; the file's own folder or one above.

    Raises:
        GlimpseError: if no column names the images.
    """

    def __init__(self, file: Path, rows: ListRows, folder: Path) -> None:
        self.file = file
        self._beginning = file.parent.relative_to(folder)
        if len(rows) and not any(map(FILE.fullmatch, rows.names)):
            raise GlimpseError(
                f"{file}: expected a column `file_name` with the path of each image, from this file's folder on, but "
                f"there are only {', '.join(rows.names)}. Rename the column of the images, or give the file {file} in "
                "place of its folder, and the column's name as `columns.image`."
            )
        super().__init__([dict(self._cells(rows.rows[index])) for index in range(len(rows))], rows.lines)

    def _cells(self, row: Any) -> Iterator[tuple[str, Any]]:
        for name, cell in row.items():
            found = FILE.fullmatch(name)
            if found and not is_missing(cell):
                paths = [(self._beginning / str(each)).as_posix() for each in as_list(cell)]
                yield f"{found[1] or 'image'}{found[2]}", paths if found[2] else paths[0]
            else:
                yield name, cell


def folder_rows(
    path: Path, split: str | None = None, size: int | None = None, skipped: list[str] | None = None
) -> Rows:
    """Rows of a folder: saved by ``datasets``, images next to a metadata file, shards in Parquet, or a single file.

    Args:
        path: the folder.
        split: split of a folder with several.
        size: number of rows, from the first one on; default: all.
        skipped: list that gets messages about broken lines of a metadata file; default: broken lines raise.

    Raises:
        GlimpseError: if the folder cannot be read, or it is not clear which of its files hold the questions.
    """
    if is_saved(path) or _says_its_files(path / "README.md"):
        return saved_rows(path, split, size)
    files = [file.relative_to(path) for file in sorted(path.rglob("*")) if _counts(file.relative_to(path))]
    tables = [file for file in files if file.suffix.lower() in (*ENDINGS, ".parquet") and file.name not in ABOUT]
    images = [file for file in files if file.suffix.lower() in Image.registered_extensions()]
    packed = any(file.suffix.lower() == ".zip" for file in files)
    metadata = [file for file in tables if file.name in METADATA] if images or packed else []
    others = [file for file in tables if file not in metadata]
    _check(path, metadata, others, bool(images))
    if images and len(metadata) == 1 and metadata[0].suffix != ".parquet" and split is None and not packed:
        return MetadataRows(path / metadata[0], text_rows(path / metadata[0], skipped, size), path)
    shards = [str(path / file) for file in others if images and not SPLIT.search(str(file))]
    return saved_rows(path, split, size, shards)


def _check(path: Path, metadata: Sequence[Path], others: Sequence[Path], images: bool) -> None:
    """Raise where files would be left out, or put together that do not belong together."""
    first = path / (others or metadata or [Path()])[0]
    if twice := [file for file in metadata if sum(each.parent == file.parent for each in metadata) > 1]:
        raise GlimpseError(f"{path}: expected one metadata file for its images, but got {_named(twice)}. Keep one.")
    if metadata and others:
        raise GlimpseError(
            f"{path}: expected the questions in its {metadata[0]} alone, but there are also {_named(others)}. Give one "
            f"of the files in place of the folder ({first}), or keep the others elsewhere."
        )
    shards = all(file.suffix.lower() == ".parquet" for file in others)
    kinds = {re.sub(r"\d+", "", str(file)) for file in others if not SPLIT.search(str(file))}
    if len(others) > 1 and not (shards and len(kinds) <= 1):
        raise GlimpseError(
            f"{path}: expected a folder that `datasets` has saved, shards in Parquet, or images next to one "
            f"metadata.csv, but got several files of questions: {_named(others)}. Give one of them in place of the "
            f"folder, as {first}."
        )
    if images and others and not shards:
        raise GlimpseError(
            f"{path}: a folder of images, without a metadata.csv that says what is asked about each; its questions "
            f"seem to be in {_named(others)}. Give that file in place of the folder: {first}."
        )
    if images and not metadata and not others:
        raise GlimpseError(
            f"{path}: a folder of images without questions. Put a metadata.csv next to them (columns file_name, "
            f"question, answers), or ask one question about each: `predict --image {path} --question TEXT`."
        )


def _counts(file: Path) -> bool:
    """Whether `datasets` looks at a file: at none that is hidden, or in a hidden folder."""
    return bool(file.suffix) and not any(part.startswith((".", "__")) for part in file.parts)


def _says_its_files(readme: Path) -> bool:
    """Whether the header of a repository's README names the files of each configuration and split."""
    if not readme.is_file():
        return False
    begin, _, rest = read_text(readme).partition("---\n")
    return not begin.strip() and "\nconfigs:" in "\n" + rest.partition("\n---")[0]


def _named(files: Sequence[Path]) -> str:
    rest = len(files) - LISTED
    return ", ".join(map(str, files[:LISTED])) + (f" and {rest} more" if rest > 0 else "")
