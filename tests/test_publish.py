"""Pruners on the Hub: uploaded by a call and by ``publish``, and loaded from there, on a hub of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelHubMixin
from loopback_hub import COMMIT, hub
from runs import run, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.cli import main, publish
from glimpse_lightning.cli.run_card import without_folders

UPLOAD = """
import sys
import glimpse_lightning as gl

pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.1))])
model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), pruner)
print(model.push_to_hub("me/by-model", private=True, commit_message="first", model_card_kwargs={"license": "mit"}))
again = gl.Pruner.from_pretrained("me/by-model")
print(again.push_to_hub("me/by-pruner"), again.trained_on["backbone"], again.source)
assert gl.load_pruner("me/by-pruner").trained_on == again.trained_on
gl.PrunedVLM(model.backbone, gl.Pruner.from_pretrained("me/by-pruner", revision="main"))
try:
    gl.Pruner.from_pretrained("me/nothing")
except gl.GlimpseError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit with its test."""
    root = tmp_path_factory.mktemp("runs")
    assert run("fit", write_recipe(root), root, "--seed_everything", "3") == 0
    return root / "small" / "fit_0"


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Folder of a hub, and the environment of a process that asks it."""
    folder = tmp_path / "hub"
    folder.mkdir()
    with hub(folder) as address:
        place = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        yield folder, os.environ | place | {"HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"}


def in_process(environment: dict[str, str], *args: str) -> str:
    done = subprocess.run([sys.executable, *args], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pruner_is_uploaded_and_loaded_again(loopback: tuple[Path, dict[str, str]]) -> None:
    folder, environment = loopback
    first, second, *missing = in_process(environment, "-c", UPLOAD).splitlines()
    assert first.endswith(f"/me/by-model/commit/{COMMIT}")
    assert second.endswith(f"/me/by-pruner/commit/{COMMIT} glimpse-tiny me/by-model")
    assert "me/nothing is no folder here, and could not be fetched" in missing[0]
    for name in ("by-model", "by-pruner"):
        assert {path.name for path in (folder / "me" / name).iterdir()} == {
            "README.md", "config.json", "pruner.safetensors",
        }  # fmt: skip
        assert f"gl.Pruner.from_pretrained('me/{name}')" in (folder / "me" / name / "README.md").read_text()
    assert ModelCard.load(folder / "me" / "by-model" / "README.md").data.license == "mit"
    asked = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    create = json.loads(next(each["body"] for each in asked if each["path"] == "/api/repos/create"))
    assert create.get("private") is True or create.get("visibility") == "private"  # by version of huggingface_hub


def test_a_run_is_published(fitted: Path, loopback: tuple[Path, dict[str, str]]) -> None:
    folder, environment = loopback
    out = in_process(environment, "-m", "glimpse_lightning", "publish", str(fitted), "--repo", "lab/small")
    assert out.strip().endswith(f"/lab/small/commit/{COMMIT}")
    assert gl.load_pruner(folder / "lab" / "small").trained_on is not None
    card = (folder / "lab" / "small" / "README.md").read_text()
    results = json.loads((fitted / "results.json").read_text())
    metrics = results["metrics"]
    assert (
        f"| **this pruner**, seed 3 | {100 * metrics['retention']:.1f} % | {100 * metrics['accuracy']:.1f} % [" in card
    )
    assert f"| random, as many tokens of each question | {100 * metrics['random_retention']:.1f} % |" in card
    assert "license: apache-2.0" in card and "fit of recipe `small`, seed 3" in card
    assert results["data"]["test"]["digest"] in card
    assert str(fitted.parent.parent) not in card, "folders of the machine stay here"


def test_the_licence_is_that_of_the_bases_page(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def page(base: str, revision: str | None = None) -> Any:
        if base != "org/base":
            raise ConnectionError
        return SimpleNamespace(card_data={"license": "gemma"})

    monkeypatch.setattr(publish, "model_info", page)
    for base, licence in (("org/base", "gemma"), ("org/unknown", None)):
        out = tmp_path / base
        assert main(["publish", str(fitted), "--repo", "lab/x", "--base", base, "--output", str(out)]) == 0
        data = ModelCard.load(out / "README.md").data
        assert (data.license, data.base_model, data.base_model_relation) == (licence, base, "adapter")
    assert "The licence of org/unknown could not be read; name it with --license" in capsys.readouterr().out


def test_seeds_stand_in_one_table(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy_of(fitted, tmp_path / "other", seed=4, metrics={"accuracy": 1.0})
    assert main(["publish", str(fitted), str(other), "--repo", "lab/x", "--output", str(tmp_path / "out")]) == 0
    assert "hf upload lab/x" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| seed 4 |" in card and "| mean and standard deviation |" in card


def test_a_test_run_names_the_fit_of_its_pruner(fitted: Path, tmp_path: Path) -> None:
    root = fitted.parent.parent
    assert run("test", root / "small.yaml", root, "--seed_everything", "3") == 0
    tested = root / "small" / "test_0"
    assert main(["publish", str(tested), "--repo", "lab/x", "--output", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**this pruner**, seed 3" in card
    assert "* fit of recipe `small`" in card and "* test of recipe `small`" in card


def test_a_base_that_the_files_do_not_name_stands_on_the_card(fitted: Path, tmp_path: Path) -> None:
    folder = copy_of(fitted, tmp_path / "run", backbone="random:tiny-llava")
    config = json.loads((folder / "pruner" / "config.json").read_text())
    del config["trained_on"]
    (folder / "pruner" / "config.json").write_text(json.dumps(config))
    flags = ["--repo", "lab/x", "--base", "org/base", "--license", "mit", "--output", str(tmp_path / "out")]
    assert main(["publish", str(folder), *flags]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "org/base" and "gl.load_backbone('org/base')" in card.text


def copy_of(fitted: Path, folder: Path, metrics: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A copy of a run with other entries of ``results.json``."""
    shutil.copytree(fitted, folder)
    results = json.loads((folder / "results.json").read_text())
    results["metrics"] |= metrics or {}
    (folder / "results.json").write_text(json.dumps(results | changes))
    return folder


REFUSED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no name": ({}, ["--repo", "small"], "`--repo` to be USER/NAME"),
    "no accuracy": ({"metrics": {"accuracy": None}}, ["--repo", "a/b"], "no accuracy of both"),
    "no folder on the hub": ({"backbone": "/models/x"}, ["--repo", "a/b"], r"is a folder of this machine.*--base"),
    "random weights": ({"backbone": "random:tiny-llava"}, ["--repo", "a/b"], r"is random weights.*--base"),
    "other pruner": ({}, ["--repo", "a/b", "--pruner", "nowhere"], "nowhere is no folder"),
    "unknown flag": ({}, ["--repo", "a/b", "--licence", "mit"], r"There is no option --licence.*--license"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(fitted: Path, tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, flags, message = REFUSED[case]
    folder = copy_of(fitted, tmp_path / "run", **changes)
    if "backbone" in changes:
        config = json.loads((folder / "pruner" / "config.json").read_text())
        del config["trained_on"]
        (folder / "pruner" / "config.json").write_text(json.dumps(config))
    assert main(["publish", str(folder), *flags, "--output", str(tmp_path / "out")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()


def test_what_else_is_refused(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*args: str) -> str:
        assert main(["publish", *args, "--repo", "a/b", "--output", str(tmp_path / "out")]) == 1
        return " ".join(capsys.readouterr().err.split())

    assert "Expected the folder of a finished run" in said(str(tmp_path))
    other = copy_of(fitted, tmp_path / "other", n=5)
    assert "differ by their seeds alone, but `n` is 7" in said(str(fitted), str(other))
    shutil.rmtree(other / "pruner")
    assert "to have trained or read a pruner, but found none" in said(str(other))
    refined = copy_of(fitted, tmp_path / "refined")
    (refined / "adapter").mkdir()
    assert "are of its pruner with the language model in" in said(str(refined))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "`--output` to be a new or empty folder" in said(str(fitted))


def test_a_card_shows_the_options_that_differ_from_their_defaults() -> None:
    options = gl.scorers.UpstreamOptions(window=4)
    for scorer, shown in (
        (gl.scorers.VIP(heads=2), "VIP(heads=2)"),
        (gl.scorers.VIP(upstream=options), "VIP(window=4)"),
    ):
        pruner = gl.Pruner([gl.PruneStage(2, scorer, gl.policies.Threshold())])
        gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), pruner)
        assert f"`{shown}`" in str(pruner.generate_model_card())


def test_a_pruner_is_a_model_of_the_hub(tmp_path: Path) -> None:
    pruner = gl.Pruner([gl.PruneStage(-1, gl.scorers.Random(), gl.policies.KeepRatio(0.1))])
    assert isinstance(pruner, ModelHubMixin)
    with pytest.raises(gl.GlimpseError, match="built for a model"):
        pruner.save_pretrained(tmp_path / "p")
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), pruner)
    assert model.save_pretrained(tmp_path / "p") is None
    card = tmp_path / "p" / "README.md"
    assert "Before the language model: `Random()`, then `KeepRatio(ratio=0.1)`" in card.read_text()
    card.write_text("mine")
    pruner.save_pretrained(tmp_path / "p")
    assert card.read_text() == "mine", "a card that was written by hand stays"
    with pytest.raises(gl.GlimpseError, match="has no use for `private`"):
        pruner.save_pretrained(tmp_path / "q", private=True)
    with pytest.raises(gl.GlimpseError, match=r"no argument 'revison'.*revision"):
        gl.Pruner.from_pretrained(tmp_path / "p", revison="x")


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("/home/me/runs/x.yaml", "x.yaml"),
        ("--data.test=/data/secret/test.jsonl", "--data.test=test.jsonl"),
        ("recipes/vip_kl.yaml", "recipes/vip_kl.yaml"),
        ("~/models/base", "base"),
        ("../up/file", "file"),
        ("--model.source.revision", "--model.source.revision"),
    ],
)
def test_folders_of_the_machine_are_left_out(word: str, left: str) -> None:
    assert without_folders(word) == left
