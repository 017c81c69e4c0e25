from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata
from packaging.version import Version
from setuptools import find_packages

from glimpse_lightning.backbones.embedded import EMBEDDED, folder_of
from glimpse_lightning.runtime import renames

ROOT = Path(__file__).parents[1]
LINKS = ("callbacks", "recipes")
USE = """
import glimpse_lightning as gl
from glimpse_lightning.callbacks import RunProgress

reveal_type(gl.PrunedVLM)
reveal_type(gl.callbacks.TokenOverlay)
reveal_type(RunProgress)
"""


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed(config: configparser.ConfigParser) -> None:
    listed = set(config["options"]["packages"].split())
    found = {"glimpse_lightning", *(f"glimpse_lightning.{name}" for name in find_packages(ROOT / "glimpse_lightning"))}
    mapped = {"glimpse_lightning.callbacks", "glimpse_lightning.recipes"}
    data_only = {f"glimpse_lightning.backbones.{folder_of(name).name}" for name in EMBEDDED}
    assert listed == found | mapped | data_only


def test_package_data_covers_what_lies_there(config: configparser.ConfigParser) -> None:
    data = config["options.package_data"]
    embedded = {f"backbones.{folder_of(name).name}": folder_of(name) for name in EMBEDDED}
    for package, folder in {"recipes": ROOT / "recipes", **embedded}.items():
        patterns = [pattern.strip() for pattern in data[f"glimpse_lightning.{package}"].split(",")]
        covered = {path for pattern in patterns for path in folder.glob(pattern)}
        there = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")}
        assert there <= covered, there - covered


def test_there_is_one_constraints_file_and_it_pins_exactly() -> None:
    (path,) = [path for path in ROOT.glob("**/constraints*.txt") if not {".venv", ".nox"} & set(path.parts)]
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all("==" in line for line in lines)
    assert "torch==2.13.0" in lines


def test_changelog_and_citation_name_the_version(config: configparser.ConfigParser) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    version = config["metadata"]["version"]
    assert headings[:2] == ["Unreleased", f"{version} ({citation['date-released']})"]
    assert citation["version"] == version


def test_old_names_go_with_the_version_that_their_warnings_name(config: configparser.ConfigParser) -> None:
    assert Version(config["metadata"]["version"]) < Version(renames.UNTIL.removeprefix("version "))
    assert f"### Deprecated: works until {renames.UNTIL}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_callbacks_from_the_repository_root_are_refused() -> None:
    out = subprocess.run([sys.executable, "-c", "import callbacks"], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode != 0
    assert "import `glimpse_lightning.callbacks`" in out.stderr


@pytest.fixture(scope="module", params=["links", "no links"])
def checkout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build reads of the repository, and a test; without links, as Windows checks it out by default."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("glimpse_lightning", *LINKS):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    if request.param == "no links":
        for name in LINKS:
            (folder / "glimpse_lightning" / name).unlink()
            (folder / "glimpse_lightning" / name).write_text(f"../{name}")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_any.py").touch()
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return build(checkout, "wheel")


def build(checkout: Path, kind: str) -> Path:
    """The ``wheel``, ``editable`` wheel or ``sdist`` that pip or ``build`` makes of a checkout."""
    code = f"from setuptools import build_meta; build_meta.build_{kind}('built/{kind}')"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (checkout / "built" / kind).iterdir()
    return path


def contents(wheel: Path) -> dict[str, int]:
    """Checksums of a wheel's files, by name."""
    return {file.filename: file.CRC for file in zipfile.ZipFile(wheel).infolist()}


def test_a_wheel_holds_every_file_once(wheel: Path) -> None:
    built = {name for name in contents(wheel) if ".dist-info/" not in name}
    package = {path for path in (ROOT / "glimpse_lightning").rglob("*") if not set(LINKS) & set(path.parts)}
    files = {path for path in package if path.is_file()} | {
        path for name in LINKS for path in (ROOT / name).rglob("*.*")
    }
    names = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert built == {name if name.startswith("glimpse") else f"glimpse_lightning/{name}" for name in names}


def test_a_source_distribution_makes_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(build(checkout, "sdist"), tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("glimpse_lightning-*")
    assert not (unpacked / "tests").exists()
    assert contents(build(unpacked, "wheel")) == contents(wheel)


@pytest.mark.parametrize("checkout", ["links"], indirect=True)
def test_the_metadata_are_those_of_the_sources(checkout: Path, wheel: Path, config: configparser.ConfigParser) -> None:
    archive = zipfile.ZipFile(wheel)
    (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    found = Metadata.from_email(archive.read(f"{folder}/METADATA"), validate=True)
    written = config["metadata"]
    assert (found.name, str(found.version), found.summary) == tuple(
        map(written.get, ("name", "version", "description"))
    )
    assert found.requires_python == config["options"]["python_requires"]
    assert (found.license_expression, found.license_files) == (written["license_expression"], ["LICENSE"])
    assert found.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(found.provides_extra or []) == set(config["options.extras_require"])
    scripts = archive.read(f"{folder}/entry_points.txt").decode()
    assert "glimpse-lightning = glimpse_lightning.cli:main" in scripts


@pytest.mark.parametrize("checkout", ["links"], indirect=True)
def test_mypy_sees_the_editable_install_from_elsewhere(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    venv.create(tmp_path / "environment")
    (site,) = (tmp_path / "environment").rglob("site-packages")
    zipfile.ZipFile(build(checkout, "editable")).extractall(site)
    (python,) = (path for path in site.parents[2].glob("*/python*") if path.stem == "python")
    options = ["--ignore-missing-imports", "--no-incremental", "--python-executable", str(python)]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "-c", USE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    callbacks = ("callbacks.token_overlay.TokenOverlay", "callbacks.run_progress.RunProgress")
    for name in ("model.pruned_vlm.PrunedVLM", *callbacks):
        assert f"-> glimpse_lightning.{name}" in done.stdout, done.stdout + done.stderr
