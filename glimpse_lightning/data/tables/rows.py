"""Questions from the rows of a table."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image
from torch.utils.data import Dataset
from typing_extensions import override

from glimpse_lightning.data.boxes import BoxFormat, inside, read_box, relative
from glimpse_lightning.data.digest import of_file
from glimpse_lightning.data.images import MAX_PIXELS, decode_image, load_image, path_inside
from glimpse_lightning.data.sample import Box, Sample
from glimpse_lightning.data.tables.columns import Columns, Wording, answer_texts, as_list, is_missing, question_text
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError, nearest
from glimpse_lightning.runtime.keys import stable_key

OnError = Literal["raise", "skip"]


class Rows(Protocol):
    """Rows by number, with images in their stored form."""

    names: Sequence[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    def column(self, name: str) -> Sequence[Any]: ...
    def place(self, index: int) -> str:
        """Where a row stands in its source, for errors."""
        return f"row {index}"


class ListRows(Rows):
    """Rows in memory.

    Args:
        rows: mappings with the same keys.
        lines: line of the file on which each row begins, counted from 1; ``None``: rows are counted from 0.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], lines: Sequence[int] | None = None) -> None:
        self.rows, self.lines = rows, lines
        self.names = list(dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {name: self.rows[index].get(name) for name in self.names}

    def column(self, name: str) -> Sequence[Any]:
        return [row.get(name) for row in self.rows]

    @override
    def place(self, index: int) -> str:
        return super().place(index) if self.lines is None else f"line {self.lines[index]}"

    def only(self, indices: Sequence[int]) -> ListRows:
        """The rows of ``indices``, at the lines where they stand."""
        lines = None if self.lines is None else [self.lines[index] for index in indices]
        return ListRows([self.rows[index] for index in indices], lines)


class RowDataset(Dataset[Sample]):
    """Questions of a table.

    Args:
        rows: rows of the table.
        source: name of the table in errors.
        columns: mapping of columns.
        wording: wording of the prompt.
        root: folder that image paths are relative to and may not leave.
        on_error: treatment of a row that cannot be used: ``raise`` stops and names its number; ``skip`` leaves it out,
            counts it and warns.
        require_answers: whether a row without an answer is an error.
        require_images: whether a row without an image is an error.
        box_format: ``normalised`` (0 to 1) or ``pixels`` of the upright image.
        max_pixels: largest number of pixels of an image; larger images are refused.
        id_modulo: modulus of numeric ids: ids that are equal modulo this number count as equal; 0: the ids themselves
            are compared.

    Raises:
        GlimpseError: if a named column is missing, or the table is empty.
    """

    def __init__(
        self,
        rows: Rows,
        source: str,
        columns: Columns,
        wording: Wording,
        root: Path,
        on_error: OnError = "raise",
        require_answers: bool = True,
        box_format: BoxFormat = "normalised",
        max_pixels: int = MAX_PIXELS,
        id_modulo: int = 0,
        require_images: bool = False,
    ) -> None:
        if not len(rows):
            raise GlimpseError(f"{source}: expected at least one row, but it is empty.")
        columns = columns.in_table(rows.names)
        if not require_answers and columns.answers == Columns().answers and columns.answers not in rows.names:
            columns = replace(columns, answers=None)
        for name in columns.names():
            if name not in rows.names:
                hint = nearest(name, rows.names)
                part = next(part for part, value in asdict(columns).items() if name in as_list(value))
                raise GlimpseError(
                    f"{source}: expected a column `{name}`, but there are only {', '.join(rows.names)}.{hint} "
                    f"Say in `columns` which column holds what (in a test `--data.test.columns.{part} NAME`)"
                    + (", and `answers: null` there if the table has no answers." if name == columns.answers else ".")
                )
        self.rows, self.source, self.columns, self.wording, self.root = rows, source, columns, wording, root
        self.on_error, self.require_answers, self.require_images = on_error, require_answers, require_images
        self.box_format, self.max_pixels = box_format, max_pixels
        names = rows.column(columns.id) if columns.id else range(len(rows))
        self.ids = unique_names([str(int(name) % id_modulo if id_modulo else name) for name in names])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        where = f"{self.source}, {self.rows.place(index)}"
        try:
            return self._sample(self.rows[index], self.ids[index], where)
        except BadSampleError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:  # a cell of an unforeseen type
            raise BadSampleError(f"{where}: cannot be read ({type(error).__name__}: {error}).") from error

    def annotated(self, what: Literal["answers", "boxes"]) -> int:
        """Number of samples that have answers, or boxes."""
        name = getattr(self.columns, what)
        cells = (value for value in self.rows.column(name) if not is_missing(value)) if name else ()
        return sum(any(not is_missing(each) for each in as_list(value)) for value in cells)

    def identity(self, index: int) -> list[Any]:
        """The cells that are read, and their wording; image files by path, size and time of change."""
        row = self.rows[index]
        images = [self._image_identity(value) for value in self._image_values(row)]
        known = [*self.columns.names(), *self.columns.more_options]
        texts = {name: row.get(name) for name in known if name not in as_list(self.columns.image)}
        return [self.ids[index], texts, asdict(self.wording), images]

    def _image_identity(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        return of_file(self.root, value) if isinstance(value, str) and base64_image(value) is None else value

    def _sample(self, row: Mapping[str, Any], name: str, where: str) -> Sample:
        values = self._image_values(row)
        images = [self._image(value, where) for value in values]
        if self.require_images and not images:
            raise BadSampleError(
                f"{where}: expected an image in column `{self.columns.image}`, but it is empty; mend the row, or set "
                "`require_images: false` for questions about nothing but text."
            )
        family = row[self.columns.family] if self.columns.family else ""
        return Sample(
            id=name,
            key=stable_key(name),
            question=question_text(row, self.columns, self.wording, where),
            answers=answer_texts(row, self.columns, where, self.require_answers),
            images=images,
            boxes=self._boxes(row, images, where),
            family="" if is_missing(family) else str(family),
            where=where,
            files=[_file(value) for value in values],
        )

    def _image_values(self, row: Mapping[str, Any]) -> list[Any]:
        named = self.columns.image if isinstance(self.columns.image, list) else [self.columns.image]
        return [value for name in named for value in as_list(row[name]) if not is_missing(value)]

    def _image(self, value: Any, where: str) -> Image.Image:
        if isinstance(value, Mapping):  # as `datasets` stores an image
            value = value.get("bytes") or value.get("path")
        try:
            if isinstance(value, bytes):
                return decode_image(value, "its image", self.max_pixels)
            if not isinstance(value, str):
                raise BadSampleError(f"expected an image or its path, but got {type(value).__name__}.")
            data = base64_image(value)
            if data is not None:
                return decode_image(data, "its image", self.max_pixels)
            remedy = (
                "move the image into it, or name a folder that holds it as `root` (links count as what they point to)"
            )
            path = path_inside(self.root, value, "its image", remedy)
            if not path.exists():
                raise BadSampleError(
                    f"no such image: {path}; paths are relative to {self.root}, unless `root` names another folder."
                )
            return load_image(path, self.max_pixels)
        except BadSampleError as error:
            raise BadSampleError(f"{where}: {error}") from None

    def _boxes(self, row: Mapping[str, Any], images: Sequence[Image.Image], where: str) -> list[list[Box]] | None:
        value = row[self.columns.boxes] if self.columns.boxes else None
        if is_missing(value):
            return None
        groups = as_list(value)
        if not groups or not isinstance(groups[0], (list, tuple)):
            raise BadSampleError(f"{where}: expected `{self.columns.boxes}` to be a list of boxes, but got {value!r}.")
        if not groups[0] or not isinstance(groups[0][0], (list, tuple)):
            groups = [groups]
        if len(groups) != len(images):
            raise BadSampleError(f"{where}: expected one list of boxes for each of {len(images)} images.")
        return [
            [self._box(read_box(box, where), image, where) for box in group]
            for group, image in zip(groups, images, strict=True)
        ]

    def _box(self, box: Box, image: Image.Image, where: str) -> Box:
        return relative(box, image.size, where) if self.box_format == "pixels" else inside(box, where, self.box_format)


def _file(value: Any) -> str:
    """The path in an image's cell; empty where the cell holds the image itself and no name."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return value if isinstance(value, str) and base64_image(value) is None else ""


def base64_image(text: str) -> bytes | None:
    """The image file in a base64 cell, as VLMEvalKit writes images; ``None`` for other texts: paths contain other
    characters or are shorter.
    """
    text = text.removeprefix("data:").partition("base64,")[2] if text.startswith("data:image/") else text
    if len(text) < SHORTEST_BASE64 or not _BASE64.fullmatch(text):
        return None
    return base64.b64decode(text)


SHORTEST_BASE64 = 80
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


def unique_names(names: Sequence[str]) -> list[str]:
    """``names`` with repeated ones numbered: ``a#0``, ``a#1``, ...."""
    often, seen = Counter(names), Counter[str]()
    taken = {name for name in names if often[name] == 1}
    out = []
    for name in names:
        new = name
        while often[name] > 1 and (new == name or new in taken):
            new = f"{name}#{seen[name]}"
            seen[name] += 1
        taken.add(new)
        out.append(new)
    return out
