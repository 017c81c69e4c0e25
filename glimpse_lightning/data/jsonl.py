"""Questions about your own images, from a file with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch.utils.data import Dataset

from glimpse_lightning.data.boxes import BoxFormat, inside, read_box, relative
from glimpse_lightning.data.digest import of_file
from glimpse_lightning.data.images import MAX_PIXELS, load_image, path_inside
from glimpse_lightning.data.sample import Box, Sample
from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError
from glimpse_lightning.runtime.keys import stable_key
from glimpse_lightning.runtime.paths import read_text
from glimpse_lightning.runtime.terminal import counted

KEYS = ("question", "answer", "answers", "image", "images", "boxes", "family", "id")

OTHERS = (
    "let Table read it (`--data.test Table --data.test.path FILE`), which has `columns` for other names, and `root` "
    "for a folder of images elsewhere"
)
"""Remedy for files that JSONL does not read."""


@dataclass(frozen=True)
class _Row:
    """A line that has passed all checks except those of its decoded images."""

    where: str
    id: str
    question: str
    answers: list[str]
    files: list[str]
    images: list[Path]
    boxes: list[list[Box]] | None
    family: str


class JSONL(Dataset[Sample]):
    """Questions about your own images, in lines ``{"question": ..., "answer": ..., "image": ...}`` of a file.

    Each line has ``question``; ``answer`` (text) or ``answers`` (list; the first one is trained on); ``image`` (path)
    or ``images`` (list of paths), relative to the file and inside its folder; and may have ``boxes``, ``family`` and
    ``id``. With ``image``, ``boxes`` is a list of ``[x1, y1, x2, y2]``; with ``images``, one such list per image.

    Args:
        path: the file.
        box_format: ``normalised`` (0 to 1, relative to width and height) or ``pixels``, of the upright image.
        on_error: treatment of a bad line or image: ``raise`` stops and names file and line; ``skip`` leaves the line
            out, counts it and warns.
        require_answers: whether a line without an answer is an error; false for data that is used for prediction only.
        max_pixels: largest number of pixels of an image; larger images are refused.
        draw: largest number of lines, drawn at random without replacement; ``None``: all lines, in their order.
        draw_seed: seed of the draw; the drawn lines are those of ``datasets.Dataset.shuffle(draw_seed)``, as in
            GlimpsePrune.

    Examples:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> Image.new("RGB", (224, 224), "red").save("page.png")
        >>> line = '{"question": "What colour is the page?", "answer": "red", "image": "page.png"}'
        >>> _ = Path("questions.jsonl").write_text(line)
        >>> gl.JSONL("questions.jsonl")[0].answers
        ['red']
    """

    def __init__(
        self,
        path: str,
        box_format: BoxFormat = "normalised",
        on_error: Literal["raise", "skip"] = "raise",
        require_answers: bool = True,
        max_pixels: int = MAX_PIXELS,
        draw: int | None = None,
        draw_seed: int = 42,
    ) -> None:
        if draw is not None and draw < 1:
            raise GlimpseError(f"Expected `draw` to be at least 1 line, or None for all, but got {draw}.")
        self.path = Path(path)
        self.box_format = box_format
        self.on_error = on_error
        self.require_answers = require_answers
        self.max_pixels = max_pixels
        self.skipped: list[str] = []
        self._last: tuple[list[Path], list[Image.Image]] = ([], [])
        self.rows = list(self._read())
        if draw is not None:
            self.rows = [self.rows[i] for i in np.random.default_rng(draw_seed).permutation(len(self.rows))[:draw]]
        if self.skipped:
            rank_zero_warn(f"{path}: skipped {counted(len(self.skipped), 'bad line')}; the first: {self.skipped[0]}")
        if not self.rows:
            raise GlimpseError(f"{path}: expected at least one usable line, but got {self._found()}.")

    @property
    def ids(self) -> list[str]:
        """Names of the samples."""
        return [row.id for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        if row.images != self._last[0]:  # consecutive questions about one image share it
            self._last = (row.images, [self._image(row, path) for path in row.images])
        images = list(self._last[1])
        return Sample(
            id=row.id,
            key=stable_key(row.id),
            question=row.question,
            answers=row.answers,
            images=images,
            boxes=self._boxes_of(row, images),
            family=row.family,
            where=row.where,
            files=row.files,
        )

    def annotated(self, what: Literal["answers", "boxes"]) -> int:
        """Number of samples that have answers, or boxes."""
        return sum(any(getattr(row, what) or ()) for row in self.rows)  # ``[[]]`` is no box

    def identity(self, index: int) -> list[Any]:
        """The values of a row, and the identities of its image files."""
        row = self.rows[index]
        images = [of_file(self.path.parent, path) for path in row.images]
        return [row.id, row.question, row.answers, row.boxes, row.family, images]

    def _found(self) -> str:
        return f"{len(self.skipped)} bad ones, the first: {self.skipped[0]}" if self.skipped else "an empty file"

    def _read(self) -> Iterator[_Row]:
        try:
            lines = read_text(self.path).split("\n")  # not splitlines: U+2028 is legal in JSON
        except FileNotFoundError:
            raise GlimpseError(
                f"{self.path}: no such file; expected a JSONL file of questions. Name "
                "yours: `--data.train FILE`, or `data.test`, whichever this is."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise GlimpseError(f"{self.path}: expected a UTF-8 text file, but reading it failed: {error}.") from None
        seen: dict[str, str] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{self.path}, line {number}"
            try:
                row = self._parse(line, where, default_id=f"{self.path.name}:{number}")
                if row.id in seen:
                    raise BadSampleError(f"{where}: `id` {row.id!r} is taken by {seen[row.id]}; ids must differ.")
                seen[row.id] = where
                yield row
            except BadSampleError as error:
                if self.on_error == "raise":
                    raise
                self.skipped.append(str(error))

    def _parse(self, line: str, where: str, default_id: str) -> _Row:
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            problem = f"{error.msg} at column {error.colno}"
            raise BadSampleError(f"{where}: broken JSON ({problem}); mend the line.") from None
        if not isinstance(data, dict):
            raise BadSampleError(f"{where}: expected a JSON object, but got {type(data).__name__}.")
        if unknown := sorted(set(data) - set(KEYS)):
            raise BadSampleError(f"{where}: unknown key {unknown[0]!r}; expected only {', '.join(KEYS)}; or {OTHERS}.")
        question = data.get("question")
        if not isinstance(question, str) or not question.strip():
            raise BadSampleError(f"{where}: expected `question` to be a text that is not empty, but got {question!r}.")
        files = self._files(data, where)
        return _Row(
            where=where,
            id=str(data.get("id", default_id)),
            question=question,
            answers=self._answers(data, where),
            files=files,
            images=self._paths(files, where),
            boxes=self._raw_boxes(data, len(files), where),
            family=str(data.get("family", "")),
        )

    def _answers(self, data: dict[str, Any], where: str) -> list[str]:
        if "answer" in data and "answers" in data:
            raise BadSampleError(f"{where}: expected `answer` or `answers`, but got both.")
        answers = data.get("answers", data.get("answer"))
        if answers in (None, "", []) and not self.require_answers:
            return []
        answers = answers if isinstance(answers, list) else [answers]
        texts = [str(a) if isinstance(a, (str, int, float)) and not isinstance(a, bool) else "" for a in answers]
        if not texts or not all(text.strip() for text in texts):
            raise BadSampleError(
                f"{where}: expected `answer` (a text) or `answers` (a list of texts) that are not empty, but got "
                f"{data.get('answers', data.get('answer'))!r}; for questions without answers set `require_answers: "
                "false` (--data.test.require_answers false, of other splits likewise)."
            )
        return texts

    def _files(self, data: dict[str, Any], where: str) -> list[str]:
        if ("image" in data) == ("images" in data):
            raise BadSampleError(f"{where}: expected either `image` (a path) or `images` (a list of paths).")
        names = data["images"] if "images" in data else [data["image"]]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise BadSampleError(f"{where}: expected image paths, but got {data.get('image', data.get('images'))!r}.")
        return names

    def _paths(self, files: list[str], where: str) -> list[Path]:
        paths = [path_inside(self.path.parent, name, where, f"move the image into it, or {OTHERS}") for name in files]
        for path in paths:
            if not path.is_file():
                raise BadSampleError(f"{where}: no such image: {path}; paths are relative to the data file.")
        return paths

    def _raw_boxes(self, data: dict[str, Any], num_images: int, where: str) -> list[list[Box]] | None:
        boxes = data.get("boxes")
        if boxes is None:
            return None
        per_image = boxes if "images" in data else [boxes]
        if not isinstance(per_image, list) or len(per_image) != num_images:
            raise BadSampleError(f"{where}: expected `boxes` to have one list for each of {num_images} images.")
        return [[self._box(box, where) for box in _as_list(group, where)] for group in per_image]

    def _box(self, box: Any, where: str) -> Box:
        corners = read_box(box, where)
        return inside(corners, where, "normalised") if self.box_format == "normalised" else corners

    def _image(self, row: _Row, path: Path) -> Image.Image:
        try:
            return load_image(path, self.max_pixels)
        except BadSampleError as error:
            raise BadSampleError(f"{row.where}: {error}") from None

    def _boxes_of(self, row: _Row, images: list[Image.Image]) -> list[list[Box]] | None:
        if row.boxes is None or self.box_format == "normalised":
            return row.boxes
        return [
            [relative(box, image.size, row.where) for box in group]
            for group, image in zip(row.boxes, images, strict=True)
        ]


def _as_list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadSampleError(f"{where}: expected `boxes` to be a list of boxes, but got {value!r}.")
    return value
