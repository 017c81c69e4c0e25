"""What a run says about its figures, and the settings that it is told apart by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import run, write_recipe

from glimpse_lightning.callbacks.results_writer import numbers_as_such, settings_of

RECIPE = """\
# The full model alone.
model: {backbone: glimpse-tiny, max_new_tokens: 3}
data: {test: {class_path: JSONL, init_args: {path: PATH, require_answers: false}}, num_workers: 0}
trainer: {accelerator: cpu, enable_progress_bar: false, logger: false}
"""


@pytest.mark.parametrize(("answer", "said"), [("no such answer", True), (None, False)])
def test_remarks_stand_below_the_table_and_in_the_results(
    tmp_path: Path, answer: str | None, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (224, 224)).save(tmp_path / "a.png")
    row = {"question": "what is it", "image": "a.png"} | ({"answer": answer} if answer else {})
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    recipe = write_recipe(tmp_path, RECIPE.replace("PATH", str(tmp_path / "d.jsonl")))
    assert run("test", recipe, tmp_path) == 0
    shown = " ".join(capsys.readouterr().out.split())
    results = json.loads((tmp_path / "small" / "test_0" / "results.json").read_text())
    assert len(results["remarks"]) == 1 + said
    assert all(remark in shown for remark in results["remarks"])
    assert ("The full model answers no question right" in shown) == said
    assert run("predict", recipe, tmp_path) == 0
    assert "about other images its answers mean nothing" in " ".join(capsys.readouterr().out.split())


def test_lines_are_sorted_as_people_count() -> None:
    said = ["t.csv, line 10: bad", "t.csv, line 9: bad", "s.csv, line 11: \u00b2", "t.csv, line 2"]
    assert sorted(said, key=numbers_as_such) == [said[2], said[3], said[1], said[0]]


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
