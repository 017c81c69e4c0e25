"""The ``score`` command: saved predictions scored again, without a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from glimpse_lightning.evaluation.chosen_metric import find_metric, read_choices
from glimpse_lightning.evaluation.predictions import Prediction, by_task, read_predictions
from glimpse_lightning.evaluation.suite_report import print_suite, suite_figures, task_figures
from glimpse_lightning.evaluation.tasks import VISUAL_COT, task_metric
from glimpse_lightning.metrics import JudgeScore
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import read_text
from glimpse_lightning.runtime.terminal import show
from glimpse_lightning.runtime.whole_files import write_text


def run(args: Sequence[str]) -> None:
    """Score the predictions that ``args`` name, print the table, and write the figures where asked.

    Raises:
        GlimpseError: where a file is missing or has another format.
    """
    parser = argparse.ArgumentParser(prog="glimpse-lightning score", description="Score saved predictions again.")
    parser.add_argument("paths", nargs="+", type=Path, help="JSONL files of predictions, or folders of them")
    parser.add_argument("--metric", help="score every task by this metric (ANLS, VQAAccuracy, ...)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of --metric (reading=llava); repeatable",
    )
    parser.add_argument("--judge", type=Path, help="JSONL of a judge's replies: {task, id, reply} a line")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    given = parser.parse_args(args)
    files = [file for path in given.paths for file in _files(path)]
    tasks = by_task(unique(p for file in files for p in read_predictions(file)))
    if not tasks:
        raise GlimpseError("Expected at least one prediction, but the files are empty.")
    if given.option and given.metric is None:
        raise GlimpseError("Expected `--metric` to say what `--option` is of, but got none.")
    if given.metric is not None:
        metric = find_metric(given.metric, read_options(given.option))
        chosen = dict.fromkeys(tasks, metric)
    else:
        noted = (read_choices(folder) for folder in {file.parent: None for file in files})
        chosen = {name: choice.build() for choices in noted for name, choice in choices.items()}
    figures = {name: task_figures(some, chosen.get(name) or task_metric(name)) for name, some in tasks.items()}
    report: dict[str, object] = {"tasks": figures, "mean": suite_figures(figures)}
    if given.judge is not None:
        report["judge"] = judged(tasks, given.judge)
    if given.output is not None:
        write_text(given.output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print_suite(figures)
    if "judge" in report:
        show(f"judge: {report['judge']}")


def unique(predictions: object) -> list[Prediction]:
    """Predictions, the last one of those with equal task and id."""
    found = {(p.task, p.id): p for p in predictions}  # type: ignore[attr-defined]
    return list(found.values())


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise GlimpseError(f"{path}: expected *.jsonl files of predictions in this folder, but there are none.")
    return files


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options of a metric, written as ``name=value``."""
    pairs = (text.partition("=") for text in texts)
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def judged(tasks: dict[str, list[Prediction]], path: Path) -> dict[str, float]:
    """Visual-CoT's judge score of every task, and their mean as ``score``.

    Raises:
        GlimpseError: where an answer has no reply.
    """
    try:
        lines = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
        replies = {(line.get("task", ""), str(line["id"])): str(line["reply"]) for line in lines}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise GlimpseError(
            f"{path}: expected lines with `id` and `reply`, and `task` if there are several: {error}."
        ) from None
    metric = JudgeScore(sets=[name.removeprefix(VISUAL_COT) for name in tasks])
    for name, predictions in tasks.items():
        missing = [p.id for p in predictions if (name, p.id) not in replies]
        if missing:
            raise GlimpseError(
                f"{path}: {len(missing)} answers of {name!r} have no reply, the first is {missing[0]!r}."
            )
        metric.update([replies[name, p.id] for p in predictions], [name.removeprefix(VISUAL_COT)] * len(predictions))
    return {key: float(value) for key, value in metric.compute().items()}
