"""Lists of the classes that fit a part of a recipe: `--model.scorer.help` without a class."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch.utils.data import Dataset

import glimpse_lightning
from glimpse_lightning.cli.parser_errors import concrete
from glimpse_lightning.metrics.text import AnswerMetric
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.scorers.base import Scorer

PARTS: dict[str, type] = {
    "--model.scorer": Scorer,
    "--model.policy": Policy,
    "--model.reducer": Reducer,
    "--model.objective": Objective,
    "--model.metric": AnswerMetric,
    **{f"--data.{split}": Dataset for split in ("train", "val", "test", "predict")},
}
"""Base class of each part, by its flag."""
LIBRARIES = ("torch.", "torchmetrics.", "datasets.", "transformers.", "accelerate.", "lightning.")
"""Packages whose datasets no recipe uses."""


def listing(args: Sequence[str]) -> str | None:
    """The list that a command line asks for; ``None`` where it asks for none."""
    flag = args[-1].removesuffix(".help") if args and args[-1].endswith(".help") else ""
    if flag not in PARTS:
        return None
    kinds = [kind for kind in concrete(PARTS[flag]) if _offered(kind)]
    width = max(map(len, (kind.__name__ for kind in kinds)))
    lines = [f"  {kind.__name__:<{width}}  {_purpose(kind)}".rstrip() for kind in kinds]
    return "\n".join([f"{flag} CLASS, out of:", *lines, f"Options of one: {flag}.help {kinds[0].__name__}"])


def _offered(kind: type) -> bool:
    """Whether a recipe may name a class: not the datasets of libraries, nor those that only other datasets use."""
    if not kind.__module__.startswith("glimpse_lightning."):
        return not kind.__module__.startswith(LIBRARIES)
    return not issubclass(kind, Dataset) or kind.__name__ in glimpse_lightning.__all__


def _purpose(kind: type) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(kind) or "").partition("\n")[0].replace("**", "").replace("``", "`")
