"""Questions from the columns of a table: mapping of columns, and wording of the prompt."""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from glimpse_lightning.runtime.errors import BadSampleError, GlimpseError

OTHER_NAMES: dict[str, Any] = {"answers": "answer", "image": "images"}
"""Names that a column may also have, where nothing was said about it."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a dataset of visual questions.

    Args:
        question: column of the question.
        answers: column of the answers: a text, a number, a list of either, or a list of mappings with the key `answer`;
            with `options`, the letter or the index from 0 of the right option. None: the table has no answers. Default:
            `answers`, or `answer` in a table without a column of that name.
        image: column of an image or a list of images, as paths, as bytes, or as stored by `datasets`; several columns:
            one image from each. Default: `image`, or `images` in a table without a column of that name.
        id: column of the question's name; default: the row's number. Repeated names get `#0`, `#1`, ... appended.
        family: column of the question family, by which figures are grouped.
        boxes: column of the evidence, a list of [x1, y1, x2, y2] (with several images: one such list per image).
        options: column with a list of the options of a multiple choice, or one column per option; empty options are
            left out.
        more_options: columns of further options, which a table need not have.
        hint: column of the question's context; cells may be empty.
        ocr: column with a list of the words read in the image.
    """

    question: str = "question"
    answers: str | None = "answers"
    image: str | list[str] = "image"
    id: str | None = None
    family: str | None = None
    boxes: str | None = None
    options: str | list[str] | None = None
    more_options: list[str] = field(default_factory=list)
    hint: str | None = None
    ocr: str | None = None

    def in_table(self, names: Sequence[str]) -> Columns:
        """The columns of a table with these ``names``: `answer` or `images` where it lacks the usual name."""
        usual = {part.name: part.default for part in fields(self)}
        other = {
            part: name
            for part, name in OTHER_NAMES.items()
            if getattr(self, part) == usual[part] and usual[part] not in names and name in names
        }
        return replace(self, **other) if other else self

    def names(self) -> list[str]:
        """All columns that the table must have."""
        values = (getattr(self, name) for name in self.__dataclass_fields__ if name != "more_options")
        return [name for value in values for name in (value if isinstance(value, list) else [value]) if name]


@dataclass(frozen=True)
class Wording:
    """Wording of the prompt.

    Args:
        prompt: template with `{question}`, `{options}` (one line `A. ...` each), `{hint}` and `{ocr}`.
        hint: replacement of `{hint}` in the prompt if a question has a hint; otherwise it is empty.
        ocr: replacement of `{ocr}` in the prompt if the columns include `ocr`; otherwise it is empty.
        suffix: text after the prompt.
        capitalize: whether the first letter of the question is in upper case and all others in lower case (Python's
            `capitalize`).
        drop: text to remove from questions.
        inline_options: whether questions contain their options as `(A) ... (B) ...`, which then become lines `A. ...`
            below the question.
        strip: whether spaces at the ends of questions are removed.

    Raises:
        GlimpseError: if a text has braces around another name; double braces stand for braces.
    """

    prompt: str = "{question}"
    hint: str = "{hint}\n"
    ocr: str = "\nReference OCR token: {ocr}"
    suffix: str = ""
    capitalize: bool = False
    drop: str = ""
    inline_options: bool = False
    strip: bool = True

    def __post_init__(self) -> None:
        for name, known in PARTS.items():
            text = getattr(self, name)
            try:
                found = [part for _, part, _, _ in string.Formatter().parse(text) if part is not None]
            except ValueError as error:
                found = [str(error)]
            wrong = [part for part in found if part not in known]
            if wrong:
                raise GlimpseError(
                    f"Expected `wording.{name}` to hold nothing in braces but {', '.join(f'{{{n}}}' for n in known)}, "
                    f"but got {text!r}. Write {{{{ and }}}} for braces that are meant as such."
                )


PARTS = {"prompt": ("question", "options", "hint", "ocr"), "hint": ("hint",), "ocr": ("ocr",)}
"""Names that may stand in braces in each text of a wording."""


def question_text(row: Mapping[str, Any], columns: Columns, wording: Wording, where: str) -> str:
    """The prompt of a row.

    Raises:
        BadSampleError: if the row has no question; the message begins with ``where``.
    """
    text = row[columns.question]
    if not isinstance(text, str) or not text.strip():
        raise BadSampleError(f"{where}: expected a text in column `{columns.question}`, but got {text!r}.")
    text = text.strip() if wording.strip else text
    text = text.replace(wording.drop, "") if wording.drop else text
    if wording.inline_options:
        text, *pairs = re.split(r"\s*\(([A-Z])\)\s*", text)
        options = [f"{letter}. {option}" for letter, option in zip(pairs[::2], pairs[1::2], strict=True)]
        text = "\n".join([text, *options])
    hint = row[columns.hint] if columns.hint else None
    parts = {
        "question": text.capitalize() if wording.capitalize else text,
        "hint": "" if is_missing(hint) else wording.hint.format(hint=hint),
        "options": "\n".join(option_lines(row, columns)),
        "ocr": wording.ocr.format(ocr=", ".join(map(str, as_list(row[columns.ocr])))) if columns.ocr else "",
    }
    return wording.prompt.format(**parts) + wording.suffix


def option_lines(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """``A. red``, ``B. blue``, ...; an empty list if the question is no multiple choice."""
    if columns.options is None:
        return []
    named = columns.options
    values = as_list(row[named]) if isinstance(named, str) else [row[name] for name in named]
    values += [row.get(name) for name in columns.more_options]
    return [
        f"{letter}. {value}"
        for letter, value in zip(string.ascii_uppercase, values, strict=False)
        if not is_missing(value)
    ]


def answer_texts(row: Mapping[str, Any], columns: Columns, where: str, required: bool = True) -> list[str]:
    """Reference answers; for a multiple choice the letter, followed by all options, as metrics expect them.

    Raises:
        BadSampleError: if required answers are missing, or the right option is not among the options.
    """
    if columns.answers is None:
        return []
    value = row[columns.answers]
    answers = [] if is_missing(value) else as_list(value)
    texts = [str(answer["answer"] if isinstance(answer, Mapping) else answer) for answer in answers]
    texts = [text for text in texts if text.strip()]
    if not texts:
        if required:
            raise BadSampleError(
                f"{where}: expected an answer in column `{columns.answers}`, but got {value!r}; choose a split that "
                "has answers, or set `require_answers: false`."
            )
        return []
    if columns.options is None:
        return texts
    options = option_lines(row, columns)
    letters = [option[0] for option in options]
    (right,) = texts[:1]
    right = string.ascii_uppercase[int(right)] if right.isdigit() and int(right) < 26 else right
    if right not in letters:
        raise BadSampleError(f"{where}: expected the answer to be one of {', '.join(letters)}, but got {texts[0]!r}.")
    return [right, *options]


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: ``None``, NaN, an empty text, or the text ``"nan"``."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip() in ("", "nan"))


def as_list(value: Any) -> list[Any]:
    """A list unchanged, a list parsed from JSON (in a cell of a CSV file), or another value as the only element of a
    list.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            return [value]
        return read if isinstance(read, list) else [value]
    return [value]
