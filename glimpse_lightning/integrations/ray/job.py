"""A batch job: everything that its answers depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from glimpse_lightning.data.tables.columns import Columns, Wording
from glimpse_lightning.data.tables.rows import RowDataset, Rows
from glimpse_lightning.pruner.files import described_stages
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.runtime.errors import check_arguments

COLUMNS: dict[str, Any] = {"answers": None, "id": "id"}
"""Columns in which a batch job differs from a table of questions: ids are needed, and answers are not read."""


@dataclass(frozen=True)
class BatchJob:
    """Model, pruner and reading of a batch job; its attributes are options of the command ``batch``.

    Args:
        backbone: hub id or folder of the model, or ``glimpse-tiny``.
        pruner: folder or hub id of a saved pruner.
        recipe: file or name of a recipe whose method needs no training. Without pruner and recipe, nothing is pruned.
        retention, threshold: budget in place of the pruner's, as in ``PrunedVLM.prefill``.
        max_new_tokens: longest answer, in tokens.
        root: folder that image paths are relative to and may not leave, the same on every machine; by default that of
            the table, or for an :class:`Answerer` alone the current one.
        columns: names of the columns, as in :class:`Columns`; by default `id`, `question` and `image` (or `images`).
        wording: wording of the prompt, as in :class:`Wording`.
        dtype: data type of the weights; by default as saved.
        device: device of the model; ``auto``: the GPU that Ray gives an actor, else the CPU.
        attn_implementation: attention kernel of transformers; by default sdpa.
        processor: settings of the image processor; by default as saved.
        source, pruner_source: places of the files on the Hub, as ``{"revision": ...}``.

    Raises:
        GlimpseError: for an unknown name in ``columns`` or ``wording``.
    """

    backbone: str
    pruner: str | None = None
    recipe: str | None = None
    retention: float | None = None
    threshold: float | None = None
    max_new_tokens: int = 32
    root: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    wording: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    device: str = "auto"
    attn_implementation: str | None = None
    processor: Mapping[str, Any] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    pruner_source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for given, known in ((self.columns, Columns), (self.wording, Wording)):
            check_arguments(known.__name__, given, [each.name for each in fields(known)])

    def named_columns(self, names: Sequence[str]) -> Columns:
        """The columns of a table with these ``names``."""
        return Columns(**{**COLUMNS, **self.columns}).in_table(names)

    def questions(self, rows: Rows, source: str) -> RowDataset:
        """The questions in rows of a table.

        Args:
            rows: at least one row.
            source: name of the table in errors.

        Raises:
            GlimpseError: where a column is missing.
        """
        columns, wording = self.named_columns(rows.names), Wording(**self.wording)
        return RowDataset(
            rows, source, columns, wording, Path(self.root), require_answers=False, require_images=True
        )  # fmt: skip

    def identity(self, pruner: Pruner | None) -> dict[str, Any]:
        """Everything that changes an answer, as plain values: these arguments, and stages and weights of the pruner."""
        found = asdict(self) | {"stages": _digest(pruner)}
        del found["device"]
        plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return plain


def _digest(pruner: Pruner | None) -> str | None:
    """A digest of a pruner's stages and weights."""
    if pruner is None:
        return None
    found = blake2b(json.dumps(described_stages(pruner.stages), sort_keys=True, default=str).encode(), digest_size=8)
    for name, weight in sorted(pruner.state_dict().items()):
        found.update(name.encode() + weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
