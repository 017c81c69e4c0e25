"""Saved predictions: one JSON object a question, written after each batch, so that a killed run loses one batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from glimpse_lightning.runtime.appended_lines import AppendedLines
from glimpse_lightning.runtime.errors import GlimpseError


@dataclass(frozen=True)
class Prediction:
    """One question's answers.

    Attributes:
        task: task of the question.
        id, family, question, references: values of the sample; the id is unique within the task.
        prediction, full_prediction: answers with pruned and with all tokens; ``None``: no such answer was computed.
        score, full_score: scores of these answers, in [0, 1]; ``None`` without references.
        kept, total: visual tokens that all stages keep, and visual tokens before pruning.
        image: ``Sample.image_name``; ``""`` if the question has no image, or its line was written before this field
            existed.
    """

    task: str
    id: str
    question: str
    references: list[str]
    prediction: str
    family: str = ""
    full_prediction: str | None = None
    score: float | None = None
    full_score: float | None = None
    kept: int = 0
    total: int = 0
    image: str = ""


class PredictionFiles:
    """The predictions of a run: a file for each task and rank.

    Args:
        folder: folder of the files.
        rank: number of this process, which writes to its own files only.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.rank = rank
        self._files: dict[str, AppendedLines] = {}

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Append predictions to their tasks' files and flush them to the operating system."""
        for task, mine in by_task(predictions).items():
            self._of(task).add([asdict(prediction) for prediction in mine])

    def read(self, task: str) -> dict[str, Prediction]:
        """Predictions of a task by all ranks, by id, in the order of ids."""
        lines = [line for path in self._of(task).paths for line in read_predictions(path, partial=True)]
        return dict(sorted({line.id: line for line in lines}.items()))

    def _of(self, task: str) -> AppendedLines:
        return self._files.setdefault(task, AppendedLines(self.folder, task.replace("/", "__"), self.rank))


def read_predictions(path: Path, partial: bool = False) -> list[Prediction]:
    """The predictions in a file.

    Args:
        path: a JSONL file that a suite, or ``test``, wrote.
        partial: whether an unfinished last line, left by a killed run, is left out.

    Raises:
        GlimpseError: if the file holds anything else.
    """
    try:
        data = path.read_bytes()
        if partial:  # the file may end in the middle of a character
            data = data[: data.rfind(b"\n") + 1]
        lines = data.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise GlimpseError(f"{path}: expected a JSONL file of predictions, but reading it failed: {error}.") from None
    known = {field.name for field in fields(Prediction)}
    out = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = {"task": "", **json.loads(line)}
            out.append(Prediction(**{name: value for name, value in row.items() if name in known}))
        except (ValueError, TypeError) as error:
            raise GlimpseError(
                f"{path}, line {number}: expected a prediction with `id`, `question`, `references` and `prediction`, "
                f"but {error}."
            ) from None
    return out


def by_task(predictions: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """Predictions of each task, tasks in the order of their first question."""
    out: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        out.setdefault(prediction.task, []).append(prediction)
    return out
