"""A metric of answers by its name and options, and the file beside predictions that says how they were scored."""

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
    """How the answers of a task are scored.

    Args:
        name: of a metric: `ANLS`, `VQAAccuracy`, ...; as of `score --metric`.
        options: its arguments, such as `{lengths: normalised}`; as of `score --option`.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> AnswerMetric:
        """The metric; see :func:`find_metric`."""
        return find_metric(self.name, self.options)


def find_metric(name: str, options: Mapping[str, Any] | None = None) -> AnswerMetric:
    """A metric of answers by its name, for predictions of all ranks: it does not gather from them.

    Raises:
        GlimpseError: where there is none, or it has no such option.
        ValueError: where an option has no such value.
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
    """Note beside the predictions in ``folder`` how those of each task are scored, where somebody chose."""
    if choices:
        text = json.dumps({task: asdict(choice) for task, choice in choices.items()}, indent=2, ensure_ascii=False)
        write_text(folder / FILE, text + "\n")


def read_choices(folder: Path) -> dict[str, MetricChoice]:
    """What :func:`write_choices` noted; nothing where it did not. Outside a suite's ``predictions`` folder, another's
    file of this common name is passed over.

    Raises:
        GlimpseError: where the file is broken.
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
