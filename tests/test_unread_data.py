"""A command needs the files of the dataset that it goes through, and of no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from runs import run, write_recipe

RECIPE = """\
# A scorer that needs no training.
model: {after_layer: 1, scorer: AttentionRank, policy: {class_path: KeepRatio, init_args: {ratio: 0.2}}}
data:
  train: {class_path: JSONL, init_args: {path: gone/train.jsonl}}
  val: {class_path: JSONL, init_args: {path: gone/val.jsonl}}
  test: {class_path: JSONL, init_args: {path: gone/test.jsonl}}
  num_workers: 0
trainer: {accelerator: cpu, enable_progress_bar: false, logger: false}
"""


def flags(name: str) -> list[str]:
    """Flags that put a dataset which needs no file in the place ``name``."""
    return [f"--data.{name}", "GlyphVQA", f"--data.{name}.size", "2", f"--data.{name}.image_size", "224"]


@pytest.mark.parametrize(("command", "name"), [("validate", "val"), ("test", "test"), ("predict", "predict")])
def test_other_datasets_may_be_missing(tmp_path: Path, command: str, name: str) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    assert run(command, recipe, tmp_path, *flags(name)) == 0
    assert (tmp_path / "small" / f"{command}_0" / "results.json").is_file()
    assert "gone/train.jsonl" in (tmp_path / "small" / f"{command}_0" / "config.yaml").read_text()


def test_a_question_on_the_spot_needs_no_dataset(tmp_path: Path) -> None:
    Image.new("RGB", (224, 224)).save(tmp_path / "a.png")
    recipe = write_recipe(tmp_path, RECIPE)
    assert run("predict", recipe, tmp_path, "--image", str(tmp_path / "a.png"), "--question", "what is it") == 0


@pytest.mark.parametrize(
    ("command", "present", "missing"),
    [("test", "val", "test"), ("validate", "test", "val"), ("predict", "train", "test"), ("fit", "test", "train")],
)
def test_the_one_that_is_read_may_not(
    tmp_path: Path, command: str, present: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, write_recipe(tmp_path, RECIPE), tmp_path, *flags(present)) == 1
    assert f"gone/{missing}.jsonl: no such file" in capsys.readouterr().err
