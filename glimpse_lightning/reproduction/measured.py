"""Figures of finished runs, by the names that tables ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from glimpse_lightning.evaluation.predictions import Prediction, by_task, read_predictions
from glimpse_lightning.evaluation.suite import PREDICTIONS, REPORT
from glimpse_lightning.rewards.judge import Judge
from glimpse_lightning.runtime.paths import read_json


def figures(run: Path) -> dict[str, float]:
    """Figures of a run of a suite: means of tasks, and means of tokens over questions; those that are known."""
    found = dict(read_json(run / REPORT)["mean"])
    answers = predictions(run)
    found |= {"tokens": mean(each.total for each in answers), "kept": mean(each.kept for each in answers)}
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}


def predictions(run: Path) -> list[Prediction]:
    """All answers of a run."""
    return [each for file in sorted((run / PREDICTIONS).glob("*.jsonl")) for each in read_predictions(file)]


def judged(answers: Sequence[Prediction], judge: Judge) -> dict[str, float]:
    """Judge scores of the pruned and of the full model: means of sets, of which the mean is taken; none where the judge
    failed on an answer.
    """
    found: dict[str, float] = {}
    sets = [*by_task(answers).values()]
    for key, said in (("judge", lambda each: each.prediction), ("full_judge", lambda each: each.full_prediction)):
        means = [_mean_score([each for each in some if said(each) is not None], said, judge) for some in sets]
        known = [value for value in means if not math.isnan(value)]
        found |= {key: mean(known)} if known else {}
    return {} if judge.counts["failed"] else found


def _mean_score(answers: Sequence[Prediction], said: Any, judge: Judge) -> float:
    asked = [
        {"question": each.question, "answer": said(each), "reference": each.references[0]}
        for each in answers
        if each.references
    ]
    return mean(judge.many(asked)) if asked else math.nan


def shares(costs: Mapping[str, Any]) -> dict[str, float]:
    """Costs of the pruned model as shares of the full one's."""
    return {name: each["ratio"] for name, each in costs.items() if isinstance(each, Mapping)}
