"""Rows of Hugging Face ``datasets``, with images left undecoded: Pillow decodes them within this package's limits.

``datasets`` is imported on first use. The import takes a second, which runs on other data are spared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glimpse_lightning.data.tables.rows import ListRows, Rows
from glimpse_lightning.runtime.errors import GlimpseError

if TYPE_CHECKING:
    import datasets


class ArrowRows(Rows):
    """Rows of a ``datasets.Dataset``.

    Args:
        table: the dataset.
    """

    def __init__(self, table: datasets.Dataset) -> None:
        self.table = table.with_format("arrow")
        self.names = table.column_names

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.table[index].to_pylist()[0]

    def column(self, name: str) -> Sequence[Any]:
        return self.table.select_columns(name)[:][name].to_pylist()


class JoinedRows(Rows):
    """Rows whose images lie in another table (GQA).

    Args:
        rows: the questions.
        images: the images.
        key: column of ``rows`` that names an image.
        image_key: column of ``images`` with the name.
        image: column of ``images`` with the image, also its name in the joined rows.
    """

    def __init__(self, rows: Rows, images: Rows, key: str, image_key: str = "id", image: str = "image") -> None:
        self.rows, self.images, self.key, self.image = rows, images, key, image
        self.names = [*rows.names, image]
        self._place = {name: index for index, name in enumerate(images.column(image_key))}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = self.rows[index]
        return {**row, self.image: self.images[self._place[row[self.key]]][self.image]}

    def column(self, name: str) -> Sequence[Any]:
        return self.rows.column(name)


def hub_rows(
    hub_id: str,
    config: str | None,
    split: str,
    revision: str | None = None,
    streaming: bool = False,
    size: int | None = None,
) -> Rows:
    """Rows of a dataset on the Hub, in the local cache, or in a local copy of its repository.

    Args:
        hub_id: ``owner/name``, or a folder.
        config: configuration of the dataset.
        split: split of the dataset.
        revision: branch, tag or commit.
        streaming: whether to fetch the first ``size`` rows only, without storing the dataset.
        size: number of rows; default: all.

    Raises:
        GlimpseError: if the dataset is not available; the message names the command that fetches it.
    """
    import datasets

    if streaming and size is None:
        raise GlimpseError("Expected `size` together with `streaming: true`: streamed rows are held in memory.")
    try:
        table = datasets.load_dataset(hub_id, config, split=split, revision=revision, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        name = f"{hub_id}{f' ({config})' if config else ''}, split {split}"
        said = f"The dataset {name} cannot be loaded: {' '.join(str(error).split()).rstrip('.')}."
        if Path(hub_id).is_dir():
            raise GlimpseError(
                f"{said} The copy in {hub_id} is not whole: download the repository into it again."
            ) from error
        raise GlimpseError(
            f"{said} Without network: fetch it once on a connected machine (`hf download {hub_id} --repo-type dataset "
            f"--local-dir FOLDER/{hub_id.partition('/')[2]}`) and name FOLDER by `--data.places.data_dir` (of a HubVQA "
            "its copy by `folder`), or copy the cache (HF_HOME)."
        ) from error
    if streaming:
        rows = [row for part in islice(table.with_format("arrow"), size) for row in part.to_pylist()]
        return ListRows(rows[:size])
    return arrow_rows(table, size)


def arrow_rows(table: datasets.Dataset, size: int | None = None) -> ArrowRows:
    """The first ``size`` rows of a table, or all."""
    return ArrowRows(table if size is None else table.select(range(min(size, len(table)))))


def parquet_rows(path: Path, size: int | None = None) -> ArrowRows:
    """Rows of a Parquet file.

    Raises:
        GlimpseError: if the file cannot be read.
    """
    import datasets

    try:
        with _without_bars():
            return arrow_rows(datasets.Dataset.from_parquet(str(path)), size)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise GlimpseError(f"{path}: cannot be read as Parquet: {' '.join(str(error).split())}") from error


def saved_rows(path: Path, split: str | None = None, size: int | None = None, shards: Sequence[str] = ()) -> ArrowRows:
    """Rows of a folder that ``save_to_disk`` wrote, or that ``load_dataset`` can read.

    Args:
        path: the folder.
        split: split of a folder with several.
        size: number of rows, from the first one on; default: all.
        shards: files in Parquet to read, and no others; by default `datasets` chooses.

    Raises:
        GlimpseError: if the folder cannot be read, or has several splits and ``split`` is none of them.
    """
    import datasets

    try:
        with _without_bars():  # one of them says that local files are downloaded
            if is_saved(path):
                table = datasets.load_from_disk(str(path))
            elif shards:
                table = datasets.load_dataset("parquet", data_files=list(shards))
            else:
                table = datasets.load_dataset(str(path))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise GlimpseError(f"{path}: cannot be read as a dataset: {' '.join(str(error).split())}") from error
    if isinstance(table, datasets.Dataset):
        return arrow_rows(table, size)
    names = list(table)
    if split is None and len(names) == 1:
        split = names[0]
    if split not in names:
        raise GlimpseError(f"{path}: expected `split` to be one of {', '.join(names)}, but got {split!r}.")
    return arrow_rows(table[split], size)


def is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote a folder."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of ``datasets`` within."""
    import datasets

    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.utils.enable_progress_bars()


def cache_folder() -> Path:
    """The folder in which ``datasets`` caches downloads."""
    import datasets

    return Path(datasets.config.HF_CACHE_HOME)
