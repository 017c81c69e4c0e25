"""How columns of a table become a question: which column holds what, and how the prompt is worded."""

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
        question: the question.
        answers: a text, a number, a list of either, or a list of mappings with the key `answer`; with `options`: the
            right one, as its letter or as its index from 0. None: there are no answers. Default: `answers`, or `answer`
            in a table without a column of that name.
        image: one image or a list of them, as a path, as bytes, or as `datasets` stores it; several columns: one image
            of each. Default: `image`, or `images` in a table without a column of that name.
        id: name of the question; default: the row's number. Names that occur several times get `#0`, `#1`, ... .
        family: question family, by which figures are grouped.
        boxes: evidence, a list of [x1, y1, x2, y2] (with several images: one such list per image).
        options: of a multiple choice, a list, or one column per option; empty ones are left out.
        more_options: columns of further options, which a table need not have.
        hint: context of the question; may be empty.
        ocr: words that were read in the image, a list.
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
        """Every column that has to be there."""
        values = (getattr(self, name) for name in self.__dataclass_fields__ if name != "more_options")
        return [name for value in values for name in (value if isinstance(value, list) else [value]) if name]


@dataclass(frozen=True)
class Wording:
    """How a question is put to the model.

    Args:
        prompt: out of `{question}`, `{options}` (a line `A. ...` each), `{hint}` and `{ocr}`.
        hint: what stands for `{hint}` in the prompt where a question has a hint.
        ocr: what stands for `{ocr}` in the prompt where the columns name words that were read.
        suffix: behind the prompt.
        capitalize: first letter of the question in upper case, all others in lower case (Python's `capitalize`).
        drop: text that is taken out of questions.
        inline_options: questions hold their options as `(A) ... (B) ...`, which become lines `A. ...` below them.
        strip: whether spaces at the ends of questions are dropped.

    Raises:
        GlimpseError: where a text has braces around anything else; for braces themselves, double them.
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
"""What may stand in braces in each text of a wording."""


def question_text(row: Mapping[str, Any], columns: Columns, wording: Wording, where: str) -> str:
    """The prompt of a row.

    Raises:
        BadSampleError: where it has no question; it begins with ``where``.
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
    """``A. red``, ``B. blue``, ...; nothing where the question is no multiple choice."""
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
    """Reference answers; of a multiple choice the letter, then all options, as metrics want them.

    Raises:
        BadSampleError: where there are none, though ``required``, or the right option is none of them.
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
    """Whether a cell holds nothing: ``None``, NaN, an empty text, or ``"nan"`` as tables write it."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip() in ("", "nan"))


def as_list(value: Any) -> list[Any]:
    """A list as it is, one written as JSON (in a cell of a CSV file) read, and anything else as its only element."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            return [value]
        return read if isinstance(read, list) else [value]
    return [value]
