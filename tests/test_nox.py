"""The noxfile loads with the pinned nox, and sessions named elsewhere are there."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_architecture import ROOMS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").rglob("*.md"),
    *ROOT.glob(".github/*/*.yml"),
]


@pytest.fixture(scope="module")
def sessions() -> set[str]:
    pytest.importorskip("nox")
    command = [sys.executable, "-m", "nox", "--list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(re.findall(r"^[*-] ([\w-]+)", listed.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def quick() -> list[str]:
    """Tests of `nox -s wheel`: files and folders."""
    pytest.importorskip("nox")
    found: list[str] = runpy.run_path(str(ROOT / "noxfile.py"))["QUICK"]
    return [name.partition("::")[0] for name in found if not name.startswith("--")]


def test_the_wheels_tests_are_there_and_in_every_room(quick: list[str]) -> None:
    paths = [ROOT / name for name in quick]
    files = {file for path in paths for file in (path.glob("test_*.py") if path.is_dir() else [path])}
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.name != "test_architecture.py")
    named = set(re.findall(r"\b(?:gl|glimpse_lightning)\.(\w+)", text))
    assert set(ROOMS) - named == {"integrations"}, "which needs lmms-eval"


def test_sessions_that_pages_name_are_there(sessions: set[str]) -> None:
    named = {name for page in PAGES for name in re.findall(r"nox\s+-s\s+([\w-]+)", page.read_text(encoding="utf-8"))}
    assert "processors" in named
    assert named <= sessions


def test_sessions_of_continuous_integration_are_there(sessions: set[str]) -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    commands = re.findall(r"run: nox -s ([\w -]+?)(?: (?:--|#).*)?$", text, re.MULTILINE)
    named = set(" ".join(commands).split())
    assert {"lint", "types", "tests", "site"} <= named <= sessions


def test_hooks_run_the_pinned_versions() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    versions = {repository["hooks"][0]["id"].partition("-")[0]: repository["rev"] for repository in hooks["repos"]}
    assert versions.keys() == {"ruff", "codespell"}
    assert {f"{name}=={version.removeprefix('v')}" for name, version in versions.items()} <= set(pins)
