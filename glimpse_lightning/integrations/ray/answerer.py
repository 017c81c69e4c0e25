"""Answers to batches of rows: the class that Ray Data's ``map_batches`` runs in its actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from typing_extensions import override

from glimpse_lightning.data.sample import Sample
from glimpse_lightning.data.tables.rows import ListRows
from glimpse_lightning.evaluation.answers import greedy
from glimpse_lightning.evaluation.evaluator import kept_and_total
from glimpse_lightning.integrations.ray.job import BatchJob
from glimpse_lightning.runtime.errors import BadSampleError
from glimpse_lightning.serving.command import model_of


class Answered(NamedTuple):
    """The outcome of one row: an answer and its visual tokens, or an error."""

    answer: str | None = None
    kept: int | None = None
    total: int | None = None
    error: str | None = None


SCHEMA = pa.schema([("answer", pa.string()), ("kept", pa.int64()), ("total", pa.int64()), ("error", pa.string())])
"""Columns that an answered batch has in addition."""
BEFORE = "input_{}"
"""Name that a column of the input gets where an answered batch has one of the same name."""


class Answerer:
    """A model that answers batches of rows, for ``map_batches`` with ``batch_format="pyarrow"``.

    Model and pruner are loaded once, when an actor makes the object.

    Args:
        job: model, pruner and reading.
        without: columns that the answered batch leaves out, such as the contents of images.

    Raises:
        GlimpseError: where the model cannot be loaded.
    """

    def __init__(self, job: BatchJob, without: Sequence[str] = ()) -> None:
        self.job, self.without = job, without
        self.model = model_of(job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """``batch`` with the columns ``answer``, ``kept``, ``total`` and ``error``.

        A row that cannot be read, or that the model's processor refuses, has an ``error`` and no answer. Greedy answers
        of the other rows are those that each would get alone. A column of the input that has one of these names becomes
        ``input_answer`` and so on.
        """
        samples, outcomes = self._read(batch.to_pylist())
        outcomes |= self._ask(samples)
        rest = batch.drop_columns([name for name in self.without if name in batch.column_names])
        rest = rest.rename_columns(
            [BEFORE.format(name) if name in SCHEMA.names else name for name in rest.column_names]
        )
        for place, column in enumerate(SCHEMA):
            values = [outcomes[row][place] for row in range(len(batch))]
            rest = rest.append_column(column, pa.array(values, column.type))
        return rest

    def _read(self, rows: Sequence[Mapping[str, object]]) -> tuple[dict[int, Sample], dict[int, Answered]]:
        """Questions by row, and the errors of rows that hold none."""
        samples, errors = dict[int, Sample](), dict[int, Answered]()
        questions = self.job.questions(_ById(rows, self.job), "batch") if rows else ()
        for row in range(len(rows)):
            try:
                samples[row] = questions[row]
            except BadSampleError as error:
                errors[row] = Answered(error=str(error))
        return samples, errors

    def _ask(self, samples: Mapping[int, Sample]) -> dict[int, Answered]:
        """Answers by row, asked together; one by one where that fails, so that a row has an error of its own only."""
        if not samples:
            return {}
        try:
            return dict(zip(samples, self._together([*samples.values()]), strict=True))
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(samples) == 1:
                return dict.fromkeys(samples, Answered(error=f"{error}"))
        found: dict[int, Answered] = {}
        for row, sample in samples.items():
            found |= self._ask({row: sample})
        return found

    @torch.no_grad()
    def _together(self, samples: list[Sample]) -> list[Answered]:
        job, batch = self.job, self.model.backbone.collate(samples)
        inputs: dict[str, Any] = batch.inputs
        out = self.model.prefill(
            keys=batch.key, questions=batch.questions, retention=job.retention, threshold=job.threshold, **inputs
        )
        texts = self.model.backbone.decode(greedy(self.model, out, job.max_new_tokens))
        counts = kept_and_total(out, len(samples))
        return [Answered(text, kept, total) for text, (kept, total) in zip(texts, counts, strict=True)]


class _ById(ListRows):
    """Rows that errors name by their ids.

    Args:
        rows: the rows.
        job: the job, which names the column of ids.
    """

    def __init__(self, rows: Sequence[Mapping[str, object]], job: BatchJob) -> None:
        super().__init__(rows)
        self._id = job.named_columns(self.names).id

    @override
    def place(self, index: int) -> str:
        return f"id {self.rows[index].get(self._id or '')!r}"
