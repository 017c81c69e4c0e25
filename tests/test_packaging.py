from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed(config: configparser.ConfigParser) -> None:
    listed = set(config["options"]["packages"].split())
    found = {"glimpse_lightning", *(f"glimpse_lightning.{name}" for name in find_packages(ROOT / "glimpse_lightning"))}
    mapped = {"glimpse_lightning.callbacks", "glimpse_lightning.recipes"}
    data_only = {"glimpse_lightning.backbones.glimpse_tiny"}
    assert listed == found | mapped | data_only


def test_package_data_covers_what_lies_there(config: configparser.ConfigParser) -> None:
    data = config["options.package_data"]
    for package, folder in (("recipes", ROOT / "recipes"), ("backbones.glimpse_tiny", None)):
        folder = folder or ROOT / "glimpse_lightning" / "backbones" / "glimpse_tiny"
        patterns = [pattern.strip() for pattern in data[f"glimpse_lightning.{package}"].split(",")]
        covered = {path for pattern in patterns for path in folder.glob(pattern)}
        there = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")}
        assert there <= covered, there - covered


def test_there_is_one_constraints_file_and_it_pins_exactly() -> None:
    (path,) = [path for path in ROOT.glob("**/constraints*.txt") if not {".venv", ".nox"} & set(path.parts)]
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
    assert "torch==2.13.0" in lines


def test_callbacks_from_the_repository_root_are_refused() -> None:
    out = subprocess.run([sys.executable, "-c", "import callbacks"], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode != 0
    assert "import `glimpse_lightning.callbacks`" in out.stderr
