"""Finished runs as ``compare`` reads them: questions, answers, settings and origin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from glimpse_lightning.evaluation.intervals import Estimate, mean_estimate
from glimpse_lightning.evaluation.predictions import Prediction, read_predictions
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.runtime.paths import read_text
from glimpse_lightning.runtime.run_folder import CONFIG, RECIPE, RESULTS, RunFolder

COMMANDS = ("test", "validate", "fit")
"""Commands whose runs have scored answers."""


@dataclass(frozen=True)
class ComparedRun:
    """A finished run.

    Attributes:
        path: its folder.
        results: ``results.json``.
        config: the resolved configuration; ``None`` where the run was started in Python and has none.
        inputs: digests of the files that the configuration names, by path.
        predictions: answers by question, the task of a suite in front of the id.
    """

    path: Path
    results: Mapping[str, Any]
    config: Mapping[str, Any] | None
    inputs: Mapping[str, Any]
    predictions: Mapping[str, Prediction]

    @cached_property
    def scores(self) -> dict[str, float]:
        """Scores of the questions that have references."""
        return {name: each.score for name, each in self.predictions.items() if each.score is not None}

    @cached_property
    def images(self) -> dict[str, str]:
        """Name of each question's image; ``""`` where it is not known."""
        return {name: each.image for name, each in self.predictions.items()}

    @property
    def accuracy(self) -> Estimate:
        """Mean score over the run's own questions."""
        return mean_estimate([*self.scores.values()], [self.images[name] for name in self.scores])

    @property
    def retention(self) -> float | None:
        """Mean share of visual tokens kept; ``None`` without any."""
        shares = [each.kept / each.total for each in self.predictions.values() if each.total]
        return mean(shares) if shares else None

    @property
    def data(self) -> Any:
        """Digest of the questions' dataset, or those of a suite's datasets; ``None`` where there is none."""
        found = self.results.get("data")
        return found.get(str(self.results.get("split")), found) if isinstance(found, Mapping) else None


def read_run(path: Path) -> ComparedRun:
    """The run in a folder, or the newest finished one in the folder of a recipe.

    Raises:
        GlimpseError: where there is no finished run with scored answers, or a file of it is damaged.
    """
    folder = _find(path)
    results = _mapping(folder / RESULTS)
    config, inputs = folder / CONFIG, folder / "inputs.json"
    return ComparedRun(
        folder,
        results,
        _mapping(config) if config.is_file() else None,
        _mapping(inputs) if inputs.is_file() else {},
        _predictions(folder, results),
    )


def run_names(runs: Sequence[ComparedRun]) -> list[str]:
    """Short names: the paths without the folders that all of them have at the beginning and at the end."""
    parts = [run.path.parts for run in runs]
    start = _shared(parts)
    end = _shared([each[start:][::-1] for each in parts])
    names = ["/".join(each[start : len(each) - end]) for each in parts]
    return names if all(names) and len({*names}) == len(names) else [str(run.path) for run in runs]


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """Number of first parts that all have in common."""
    return len([*takewhile(lambda each: len({*each}) == 1, zip(*parts, strict=False))])


def _find(path: Path) -> Path:
    if not path.is_dir():
        raise GlimpseError(f"{path}: expected the folder of a run or of a recipe's runs, but {_instead(path)}")
    if RunFolder(path).finished:
        return path.resolve()
    if any((path / name).is_file() for name in (CONFIG, RECIPE)):
        raise GlimpseError(
            f"{path}: this run has not finished, as it has no {RESULTS}. Give its command again, which goes on with it."
        )
    runs = [run for command in COMMANDS for run in sorted(path.glob(f"{command}_*")) if RunFolder(run).finished]
    if not runs:
        raise GlimpseError(
            f"{path}: expected the folder of a run of {', '.join(COMMANDS)} (it holds {RESULTS}), or a folder of such "
            f"runs, but it holds {_listed(path)}.{_around(path)}"
        )
    return max(runs, key=lambda run: str(_mapping(run / RESULTS).get("date"))).resolve()


def _instead(path: Path) -> str:
    """A description of what is in the place of a folder."""
    if path.exists():
        return f"it is a file.{_around(path)}"
    try:
        others = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except OSError:
        return "there is none."
    return f"there is none.{nearest(path.name, others)}"


def _around(path: Path) -> str:
    """A sentence that names the run which a file or folder is a part of; empty where there is none."""
    found = next((each for each in path.absolute().parents if RunFolder(each).finished), None)
    return f" Name the folder of its run, {found}." if found else ""


def _listed(path: Path) -> str:
    names = sorted(each.name for each in path.iterdir())
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"


def _mapping(path: Path) -> Mapping[str, Any]:
    """A JSON or YAML file that holds a mapping."""
    try:
        found = json.loads(read_text(path)) if path.suffix == ".json" else yaml.safe_load(read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise GlimpseError(f"{path}: expected this file of a run, but reading it failed: {error}.") from None
    if not isinstance(found, Mapping):
        raise GlimpseError(f"{path}: expected a mapping, as a run writes it, but got {type(found).__name__}.")
    return found


def _predictions(folder: Path, results: Mapping[str, Any]) -> dict[str, Prediction]:
    own = folder / "predictions.jsonl"
    files = [own] if own.is_file() else sorted((folder / "predictions").glob("*.jsonl"))
    found: dict[str, Prediction] = {}
    for path in files:
        for each in read_predictions(path):
            _check(each, path)
            name = f"{each.task}/{each.id}" if each.task else str(each.id)
            if name in found and _question(found[name]) != _question(each):
                raise GlimpseError(
                    f"{path}: two questions have the id {name!r}, by which runs are paired. Give every row of the data "
                    "an id of its own, and run the command again."
                )
            found[name] = each
    if not found:
        command = results.get("command")
        remedy = {
            "fit": "A fit has them with `model.test_after_fit: true`; `test` its recipe.",
            "predict": "`predict` scores nothing; `test` the recipe on data with answers.",
        }.get(str(command), "Run its command again.")
        raise GlimpseError(f"{folder}: this run has no scored answers (predictions.jsonl). {remedy}")
    return found


def _check(prediction: Prediction, path: Path) -> None:
    """Raise where a field that is compared has another type than a run writes."""
    numbers = {"kept": prediction.kept, "total": prediction.total, "score": prediction.score or 0.0}
    texts = {name: getattr(prediction, name) for name in ("task", "family", "question", "prediction", "image")}
    wrong = [name for name, value in numbers.items() if not _usable(value) or (name == "score" and value > 1)]
    wrong += [name for name, value in texts.items() if not isinstance(value, str)]
    if wrong or not isinstance(prediction.references, list):
        raise GlimpseError(
            f"{path}: question {prediction.id!r} has another `{(wrong or ['references'])[0]}` than a run writes. Run "
            "the command again that wrote this file."
        )


def _usable(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def _question(prediction: Prediction) -> tuple[Any, ...]:
    return prediction.question, prediction.references, prediction.image
