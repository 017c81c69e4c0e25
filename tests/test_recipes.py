"""Every recipe parses, instantiates and builds its model: a new one is tested by lying in recipes/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from runs import run

from glimpse_lightning.lightning_cli import RunCLI
from glimpse_lightning.module import PruningModule
from glimpse_lightning.packaged_recipes import purpose, recipes

RECIPES = sorted(recipes().items())


@pytest.mark.parametrize(("name", "path"), RECIPES, ids=[name for name, _ in RECIPES])
def test_recipe_parses_and_instantiates(
    name: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[RunCLI] = []
    monkeypatch.setattr(RunCLI, "_run_subcommand", lambda self, command: built.append(self))
    monkeypatch.chdir(tmp_path)
    assert run("fit", path, tmp_path / "runs") == 0
    (cli,) = built
    if isinstance(cli.model, PruningModule):
        cli.model.configure_model()
        assert cli.datamodule is not None
    resolved = tmp_path / "runs" / path.stem / "fit_0" / "config.yaml"
    assert run("fit", resolved, tmp_path / "again") == 0  # what a run leaves can be run


@pytest.mark.parametrize(("name", "path"), RECIPES, ids=[name for name, _ in RECIPES])
def test_recipe_says_what_it_is_for(name: str, path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert purpose(path)
    for word in ("Launch:", "Override:", "Hardware:"):
        assert word in header, f"{path}: expected `{word}` in the header comment"
    assert f"recipes/{name}.yaml" in header


def test_no_recipe_sets_what_it_does_not_use() -> None:
    for name, path in RECIPES:
        text = path.read_text()
        for variable in (yaml.safe_load(text) or {}).get("vars", {}):
            assert re.search(rf"\$\{{vars\.{variable}\b", text), f"{name}: vars.{variable} is unused"
