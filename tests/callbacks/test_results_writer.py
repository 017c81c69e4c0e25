"""Where the full model answers nothing right, the table says what to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import run, write_recipe

from glimpse_lightning.callbacks.results_writer import settings_of, why_nothing_is_right
from glimpse_lightning.evaluation.records import Record, Summary
from glimpse_lightning.metrics import ANLS
from glimpse_lightning.training.module import PruningModule

RECIPE = """\
# The full model alone.
model: {backbone: glimpse-tiny, max_new_tokens: 3}
data: {test: {class_path: JSONL, init_args: {path: PATH, require_answers: false}}, num_workers: 0}
trainer: {accelerator: cpu, enable_progress_bar: false, logger: false}
"""


def summary(*scores: float | None) -> Summary:
    records = [Record(str(i), "", "q", [], "a", "a", score, score, 1, 2) for i, score in enumerate(scores)]
    return Summary(records, {})


def test_reasons_are_those_of_the_run() -> None:
    said = why_nothing_is_right(summary(0.0, None), PruningModule(backbone="some/model", metric=ANLS()))
    assert "ANLS may ask for more" in said and "--data.prompt" in said and "glimpse-tiny" not in said
    assert "glimpse-tiny knows GlyphVQA's questions" in why_nothing_is_right(summary(0.0), PruningModule())


@pytest.mark.parametrize("scores", [(0.0, 1.0), (0.1,), (None, None), ()])
def test_nothing_is_said_where_something_is_right_or_nothing_is_known(scores: tuple[float | None, ...]) -> None:
    assert why_nothing_is_right(summary(*scores), PruningModule()) == ""


@pytest.mark.parametrize(("answer", "said"), [("no such answer", True), (None, False)])
def test_the_table_says_so(tmp_path: Path, answer: str | None, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (224, 224)).save(tmp_path / "a.png")
    row = {"question": "what is it", "image": "a.png"} | ({"answer": answer} if answer else {})
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    assert run("test", write_recipe(tmp_path, RECIPE.replace("PATH", str(tmp_path / "d.jsonl"))), tmp_path) == 0
    assert ("The full model answers no question right" in capsys.readouterr().out) == said


def part(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"glimpse_lightning.anything.{name}", "init_args": options}


def test_budgets_are_columns_however_they_are_given() -> None:
    for options in ({"ratio": 0.1}, {"budget": {"ratio": 0.1, "per": "item"}}, {"budget": 0.1}):
        model = {"after_layer": 2, "scorer": part("VIP", heads=2), "policy": part("DPP", **options)}
        shown = {"after_layer": 2, "scorer": "VIP", "policy": "DPP", "policy.ratio": 0.1, "seed": 1}
        assert settings_of({"model": model, "seed": 1}) == shown


def test_several_stages_share_columns() -> None:
    stages = [
        {"after_layer": 1, "scorer": part("VIP"), "policy": part("Threshold", threshold=0.5)},
        {"after_layer": 3, "scorer": part("Random"), "policy": part("TopK", count=4)},
    ]
    shown = settings_of({"model": {"stages": stages, "optimizer": {"lr": 0.1}}, "seed": 0})
    assert (shown["after_layer"], shown["scorer"], shown["policy"]) == ("1, 3", "VIP, Random", "Threshold, TopK")
    assert (shown["policy.threshold"], shown["policy.count"], shown["lr"]) == ("0.5, -", "-, 4", 0.1)
