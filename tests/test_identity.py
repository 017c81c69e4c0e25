"""What a run depends on is told by content: weights go to the recipe and data that they were trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import SMALL, run, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.cli.identity import changed_since, differences, digest, inputs, write_inputs
from glimpse_lightning.runtime.run_folder import CONFIG
from glimpse_lightning.runtime.whole_files import write_text

FIT = ("--model.test_after_fit", "false", "--trainer.limit_val_batches", "0")


def test_a_digest_is_of_contents_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_text(folder / "x", "1")
    found = {digest(folder)}
    write_text(folder / "x", "2")
    found.add(digest(folder))
    write_text(folder / "y", "2")
    found.add(digest(folder))
    (folder / "y").rename(folder / "z")
    found.add(digest(folder))
    assert len(found) == 4
    write_text(tmp_path / "b" / "x", "2")
    write_text(tmp_path / "b" / "z", "2")
    assert digest(tmp_path / "b") in found


def test_what_a_configuration_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "data.jsonl", "pruner/config.json"):
        write_text(Path(name), "x")
    train = {"class_path": "JSONL", "init_args": {"path": "data.jsonl", "split": "train"}}
    config = {"model": {"pruner": "pruner", "backbone": "glimpse-tiny"}, "data": {"train": train}}
    assert set(inputs(config)) == {"pruner", "data.jsonl"}  # not the folder that a split is called after
    write_text(Path("run") / CONFIG, json.dumps(config))
    assert changed_since(Path("run")) == []  # a run of a version that wrote nothing down
    write_inputs(Path("run"), config)
    assert changed_since(Path("run")) == []
    write_text(Path("pruner/config.json"), "y")
    assert changed_since(Path("run")) == ["pruner"]
    assert changed_since(Path("run"), "data.train") == []
    Path("data.jsonl").unlink()
    assert changed_since(Path("run")) == ["data.jsonl", "pruner"]


def test_what_makes_weights_and_what_does_not(tmp_path: Path) -> None:
    scorer = {"class_path": "x.VIP", "init_args": {"heads": 2}}
    model = {"after_layer": 1, "scorer": scorer, "objective": {"class_path": "KL", "init_args": {"retention": 0.1}}}
    train = {"class_path": "JSONL", "init_args": {"path": str(tmp_path / "a.jsonl")}}
    trained = {"model": model, "data": {"train": train, "test": "a"}}

    def found(model: dict[str, Any], **data: Any) -> list[str]:
        return differences(trained, {"model": model, "data": {"train": train, **data}})

    assert found(model | {"policy": "Threshold", "baselines": [], "objective": None}, test="b") == []
    assert found({**model, "scorer": {**scorer, "init_args": {"heads": 2, "new": 1}}}) == []
    assert found(model | {"after_layer": 2}) == ["model.after_layer: 1 != 2"]
    other = model | {"scorer": {"class_path": "x.AttentionRank", "init_args": {}}}
    assert found(other) == ["model.scorer.class_path: x.VIP != x.AttentionRank"]
    stages = [{"after_layer": 1, "scorer": scorer, "policy": "a"}]
    assert differences({"model": {"stages": stages}}, {"model": {"stages": [{**stages[0], "policy": "b"}]}}) == []
    elsewhere = {"class_path": "JSONL", "init_args": {"path": str(tmp_path / "b.jsonl")}}
    assert found(model, train=elsewhere) == [
        f"data.train.init_args.path: {tmp_path / 'a.jsonl'} != {tmp_path / 'b.jsonl'}"
    ]
    for name in "ab":  # a copy is the same data
        write_text(tmp_path / f"{name}.jsonl", "x")
    assert found(model, train=elsewhere) == found(model, train=None) == []


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = []
    for index in range(4):
        sample = gl.GlyphVQA("train", 4, image_size=224)[index]
        sample.images[0].save(tmp_path / f"{index}.png")
        lines.append(json.dumps({"question": sample.question, "answer": sample.answers[0], "image": f"{index}.png"}))
    write_text(tmp_path / "rows.jsonl", "\n".join(lines) + "\n")
    return tmp_path / "rows.jsonl"


def test_a_test_takes_the_weights_of_its_own_settings_and_data(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of a recipe of the same name, or of the same recipe on other rows."""
    text = SMALL.replace("split: train, size: 64, image_size: 224", f"path: {rows}").replace(
        "train: {class_path: GlyphVQA", "train: {class_path: JSONL"
    )
    recipe, root = write_recipe(tmp_path, text), tmp_path / "runs"
    (tmp_path / "other").mkdir()
    other = write_recipe(tmp_path / "other", text.replace("retention: 0.1", "retention: 0.5"))
    test = ("--model.baselines", "[]", "--data.test_size", "2", "--trainer.callbacks", "[]")
    assert run("fit", recipe, root, *FIT, "--trainer.max_steps", "2") == 0
    assert run("test", other, root, *test) == 1
    said = capsys.readouterr().err
    assert "was trained with other settings (model.objective.init_args.retention: 0.1 != 0.5)" in said
    assert "--ckpt_path FILE" in said
    assert run("test", recipe, root, *test, "--model.policy", "KeepRatio", "--model.policy.ratio", "0.3") == 0
    rows.write_text(rows.read_text().replace('"question": "', '"question": "Please: '))
    assert run("test", recipe, root, *test) == 1
    assert f"was trained on other contents of {rows}" in capsys.readouterr().err
    assert run("fit", recipe, root, *FIT, "--trainer.max_steps", "3") == 0
    assert run("test", recipe, root, *test) == 0


def test_an_interrupted_run_goes_on_with_the_data_it_began_with(tmp_path: Path, rows: Path) -> None:
    text = SMALL.replace("split: train, size: 64, image_size: 224", f"path: {rows}").replace(
        "train: {class_path: GlyphVQA", "train: {class_path: JSONL"
    )
    recipe, root = write_recipe(tmp_path, text), tmp_path / "runs"
    for number in range(3):
        assert run("fit", recipe, root, *FIT, "--trainer.max_steps", "2") == 0
        (root / "small" / f"fit_{min(number, 1)}" / "results.json").unlink()  # as if it had been killed
        if number == 0:
            rows.write_text(rows.read_text().replace('"question": "', '"question": "Please: '))
    assert sorted(path.name for path in (root / "small").iterdir()) == ["fit_0", "fit_1"]


def test_a_home_folder_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path)
    assert run("fit", recipe, Path("~/runs"), *FIT, "--trainer.max_steps", "1") == 0
    assert (tmp_path / "home" / "runs" / "small" / "fit_0" / "results.json").is_file()
    recipe = write_recipe(tmp_path, SMALL.replace("trainer:\n", "trainer:\n  default_root_dir: ~/yaml\n"), "tilde.yaml")
    assert gl.cli.main(["fit", "--config", str(recipe), *FIT, "--trainer.max_steps", "1"]) == 0
    assert (tmp_path / "home" / "yaml" / "tilde" / "fit_0" / "pruner").is_dir()
    assert not (tmp_path / "~").exists()
