"""Your own questions, from a table in a common format, with a mapping of its columns."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from glimpse_lightning.data.boxes import BoxFormat
from glimpse_lightning.data.images import MAX_PIXELS, looks_like_an_image
from glimpse_lightning.data.tables.arrow import parquet_rows
from glimpse_lightning.data.tables.columns import Columns, Wording
from glimpse_lightning.data.tables.folder import MetadataRows, folder_rows
from glimpse_lightning.data.tables.rows import ListRows, OnError, RowDataset, Rows, base64_image
from glimpse_lightning.data.tables.text_files import ENDINGS, text_rows
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.terminal import counted


class Table(RowDataset):
    """Questions in a JSONL, JSON, CSV, TSV or Parquet file, in a folder saved by `datasets`, or in a folder of images.

    Args:
        path: file or folder. A folder was saved by `datasets`, or holds images next to a `metadata.csv` or
            `metadata.jsonl`, shards in Parquet, or a single file of questions.
        columns: mapping of columns.
        wording: wording of the prompt.
        root: folder that image paths are relative to and may not leave; default: the file's folder.
        split: split of a folder with several; default: the only one.
        size: number of rows to use, from the first one on; default: all.
        on_error: treatment of a row that cannot be used: `raise` stops, `skip` leaves the row out and counts it.
        require_answers: whether a row without an answer is an error.
        require_images: whether a row without an image is an error; if not, it is a question about text alone.
        box_format: `normalised` (0 to 1, relative to width and height) or `pixels`, of the upright image.
        max_pixels: largest number of pixels of an image; larger images are refused.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> Image.new("RGB", (224, 224), "red").save("page.png")
        >>> _ = Path("questions.csv").write_text("question,answers,image\\nWhat colour?,red,page.png\\n")
        >>> gl.Table("questions.csv")[0].answers
        ['red']
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
        require_images: bool = True,
    ) -> None:
        self.path = Path(path)
        self.skipped: list[str] = []
        if not self.path.exists():
            raise GlimpseError(f"{path}: no such file or folder; expected a table of questions.")
        rows = read_rows(self.path, split, size, self.skipped if on_error == "skip" else None)
        super().__init__(
            rows,
            source=str(rows.file) if isinstance(rows, MetadataRows) else path,
            columns=columns,
            wording=wording,
            root=Path(root) if root else self.path if self.path.is_dir() else self.path.parent,
            on_error=on_error,
            require_answers=require_answers,
            require_images=require_images,
            box_format=box_format,
            max_pixels=max_pixels,
        )
        if on_error == "skip" and isinstance(self.rows, ListRows):
            self._drop_broken_images(self.rows)
        if self.skipped:
            rank_zero_warn(f"{path}: skipped {counted(len(self.skipped), 'bad line')}; the first: {self.skipped[0]}")

    def _drop_broken_images(self, rows: ListRows) -> None:
        """Leave out rows with a base64 cell whose first bytes are not those of an image."""
        good = []
        for index in range(len(rows)):
            texts = [value for value in self._image_values(rows[index]) if isinstance(value, str)]
            cells = [data for data in map(base64_image, texts) if data is not None]
            if all(map(looks_like_an_image, cells)):
                good.append(index)
            else:
                self.skipped.append(
                    f"{self.path}, {rows.place(index)}: its image: not a readable image; mend the cell."
                )
        self.rows = rows.only(good)
        self.ids = [self.ids[index] for index in good]
        if not good:
            raise GlimpseError(f"{self.path}: expected a usable row, but all are bad; the first: {self.skipped[0]}")


def read_rows(path: Path, split: str | None = None, size: int | None = None, skipped: list[str] | None = None) -> Rows:
    """The rows of a file or folder.

    Args:
        path: the file or folder.
        split: split of a folder with several.
        size: number of rows to read, from the first one on; default: all.
        skipped: list that gets messages about broken lines, which are then left out; default: broken lines raise.

    Raises:
        GlimpseError: if the format is unknown or the contents are damaged.
    """
    if path.is_dir():
        return folder_rows(path, split, size, skipped)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_rows(path, size)
    if suffix in ENDINGS:
        return text_rows(path, skipped, size)
    raise GlimpseError(
        f"{path}: expected .jsonl, .json, .csv, .tsv, .parquet or a folder, but its name ends in {path.suffix!r}."
    )
