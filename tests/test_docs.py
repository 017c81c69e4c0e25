"""The documentation's links lead somewhere, its commands parse, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glimpse_lightning.cli.trainer_runs import RunCLI, run
from glimpse_lightning.runtime.renames import MOVED

ROOT = Path(__file__).parents[1]
FRONT = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in FRONT), *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def code(page: str, language: str = "python") -> list[str]:
    """The Python blocks of a page in docs/, or those in another language."""
    return _blocks(ROOT / "docs" / page, language)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_are_there(name: str) -> None:
    folders = "glimpse_lightning|tests|callbacks|recipes|docs"
    named = set(re.findall(rf"`((?:{folders})/[\w./]*|[\w]+\.(?:yml|cfg|md|txt))`", (ROOT / name).read_text()))
    assert len(named) > 15
    assert not {path for path in named if not (ROOT / path).exists()}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_modules_are_named_by_their_places_of_today(page: Path) -> None:
    named = set(re.findall(r"\bglimpse_lightning\.([a-z_.]+)", page.read_text()))
    assert not {name for name in named for old in MOVED if f"{name}.".startswith(f"{old}.")}


COMMANDS = sorted(
    {
        " ".join(match.split())
        for page in PAGES
        for block in _blocks(page, "bash")
        for match in re.findall(r"(?:-lightning|-m glimpse_lightning) ([^&\n]+)", block.replace("\\\n", " "))
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = shlex.split(command)
    if args[0] not in ("fit", "test", "validate", "predict") or "my_pruners" in command or "--config mine/" in command:
        return  # test_plugins.py and test_documented_commands.py run these
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.setattr(RunCLI, "instantiate_classes", lambda self: None)  # their files are examples
    monkeypatch.setattr("glimpse_lightning.cli.trainer_runs.Path.is_file", lambda path: path.suffix == ".yaml")
    monkeypatch.chdir(ROOT)
    run(args)


def test_the_python_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, object] = {"__name__": "readme"}
    for block in _blocks(ROOT / "README.md", "python"):
        exec(compile(block, "README.md", "exec"), space)
    assert capsys.readouterr().out


def _run(page: str, blocks: list[str]) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": Path(page).stem}
    for block in blocks:
        exec(compile(block, page, "exec"), space)
    return space


def test_training_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (640, 480), "red").save("photo.jpg")
    page = ROOT / "docs" / "train_in_python.md"
    space = _run(page.name, _blocks(page, "python"))
    assert space["trainer"].global_step == 4
    assert 0 < space["figures"]["test/retention"] <= 1
    assert space["model"].pruner.stages[0].after_layer == 3
    lines = [line for line in _blocks(page, "python")[0].splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 12


def test_streaming(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "backbones.md").read_text()
    space = _run(
        "backbones.md", re.findall(r"<!-- streaming -->\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    )
    plain = space["model"].generate(**space["inputs"], max_new_tokens=16)
    assert torch.equal(space["ids"], plain)
    assert capsys.readouterr().out.strip() == space["backbone"].decode(plain)[0] != ""


def test_a_pruned_prompt_is_handed_over(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in code("deploy.md") if "prune_prompt" in block]
    space = _run("deploy.md", [block])
    shapes, answer = capsys.readouterr().out.splitlines()
    assert shapes.replace("torch.Size(", "").replace(")", "") in block
    assert answer == str(space["backbone"].decode(space["model"].generate(**space["batch"].inputs, max_new_tokens=16)))


def test_a_conversation_grows_and_its_image_is_seen_in_each_turn(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in code("deploy.md") if "converse" in block]
    space = _run("deploy.md", [block])
    first, _ = capsys.readouterr().out.splitlines()
    assert first == space["sample"].answers[0]
    prompt = space["backbone"].converse(space["messages"])
    assert [message["role"] for message in space["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert space["model"].prefill(**prompt).tokens.item.shape == (256,)


def test_a_dialogue_sees_its_image_once(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in code("deploy.md") if "gl.Dialogue" in block]
    space = _run("deploy.md", [block])
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert " ".join(first[:-2]) == space["sample"].answers[0]
    assert (first[-1], second[-2]) == ("1", "0") and int(second[-3]) < 40 < int(first[-2])


def test_a_pruner_is_saved_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in code("deploy.md") if "Pruner.from_pretrained" in block]
    space = _run("deploy.md", [block])
    assert "gl.Pruner.from_pretrained('me/attention-rank')" in Path("pruner/README.md").read_text()
    assert space["pruner"].trained_on["backbone"] == "glimpse-tiny"


def test_a_glyph_vqa_sample() -> None:
    sample = _run("glyph_vqa.md", code("glyph_vqa.md"))["sample"]
    printed = str((sample.question, sample.answers, sample.family))
    assert printed[1:-1] in code("glyph_vqa.md")[0]


def test_the_readmes_scorer_fits_in_15_lines() -> None:
    (block,) = [block for block in _blocks(ROOT / "README.md", "python") if "class Centre" in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= 15
