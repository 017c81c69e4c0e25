"""A metric of answers by its name and options, and the file next to predictions that records it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glimpse_lightning import metrics
from glimpse_lightning.metrics import AnswerMetric
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.whole_files import write_text

FILE = "metrics.json"
PREDICTIONS = "predictions"


@dataclass(frozen=True)
class MetricChoice:
    """The metric of a task's answers.

    Args:
        name: name of a metric: `ANLS`, `VQAAccuracy`, ...; as in `score --metric`.
        options: arguments of the metric, such as `{lengths: normalised}`; as in `score --option`.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> AnswerMetric:
        """The metric; see :func:`find_metric`."""
        return find_metric(self.name, self.options)


def find_metric(name: str, options: Mapping[str, Any] | None = None) -> AnswerMetric:
    """A metric of answers by its name. It does not gather from other ranks, because it gets the predictions of all
    ranks.

    Raises:
        GlimpseError: if there is no such metric, or it has no such option.
        ValueError: if an option cannot have the given value.
    """
    known = {
        kind.__name__: kind
        for kind in (getattr(metrics, each) for each in metrics.__all__)
        if issubclass(kind, AnswerMetric) and kind is not AnswerMetric
    }
    if name not in known:
        raise GlimpseError(f"Expected a metric out of {', '.join(known)}, but got {name!r}.")
    allowed = [option for option in inspect.signature(known[name]).parameters if option != "kwargs"]
    for option in options or {}:
        if option not in allowed:
            choices = ", ".join(allowed) or "none"
            raise GlimpseError(f"Expected an option of {name} out of {choices}, but got {option!r}.")
    return known[name](**(options or {}), sync_on_compute=False)


def write_choices(folder: Path, choices: Mapping[str, MetricChoice]) -> None:
    """Write the chosen metrics of tasks next to the predictions in ``folder``; tasks with their own metric are left
    out.
    """
    if choices:
        text = json.dumps({task: asdict(choice) for task, choice in choices.items()}, indent=2, ensure_ascii=False)
        write_text(folder / FILE, text + "\n")


def read_choices(folder: Path) -> dict[str, MetricChoice]:
    """The metrics that :func:`write_choices` has written; empty without such a file. Outside a suite's ``predictions``
    folder, a file of the same name from another program is ignored.

    Raises:
        GlimpseError: if the file is broken.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        ours = isinstance(noted, dict) and all(isinstance(each, dict) and "name" in each for each in noted.values())
        if not ours and folder.name != PREDICTIONS:
            return {}
        return {task: MetricChoice(**choice) for task, choice in noted.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise GlimpseError(f"{path}: expected a metric's `name` and `options` for each task, but {error}.") from None
