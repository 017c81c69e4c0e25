"""docs/plug_in_a_scorer.md, followed by a package outside of this one."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from forked import forked

from glimpse_lightning.cli import main
from glimpse_lightning.cli import trainer_runs as lightning_cli
from glimpse_lightning.runtime.errors import GlimpseError

PAGE = Path(__file__).parents[1] / "docs" / "plug_in_a_scorer.md"


def _runs(folder: Path) -> None:
    """In a process that finds the modules, but not yet the metadata of their package."""
    os.chdir(folder)
    sys.path.insert(0, str(folder / "modules"))
    flags = ["--trainer.default_root_dir", "runs", "--trainer.accelerator", "cpu", "--data.test_size", "2"]
    flags += ["--data.num_workers", "0", "--model.max_new_tokens", "2", "--model.baselines", "[]"]
    short = ["test", "--config", "salient_centre.yaml", "--model.scorer.pull", "2.0", *flags]
    assert main(short) == 1  # nobody has announced the name yet
    sys.path.insert(0, "metadata")  # what pip leaves of an installed package
    assert main(short) == 0
    assert main(["test", "--config", "methods/random", "--model.scorer", "elsewhere.NotAnnounced", *flags]) == 0


def block(kind: str) -> str:
    found = re.search(rf"<!-- plug-in: {kind} -->\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, kind
    return found[1]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with the page's scorer as ``my_pruners``, its recipe, and the metadata of its installed package."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_pruners.py").write_text(block("module"))
    (tmp_path / "modules" / "elsewhere.py").write_text(block("module").replace("SalientCentre", "NotAnnounced"))
    (tmp_path / "salient_centre.yaml").write_text(block("recipe"))
    info = tmp_path / "metadata" / "my_pruners-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-pruners\nVersion: 1.0\n")
    group, entry = re.findall(r"^(glimpse\S+) =\n\s+(\w+ = \w+)", block("entry points"), re.MULTILINE)[0]
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
    return tmp_path


def test_scorers_from_outside_by_entry_point_and_by_dotted_path(outside: Path) -> None:
    done = forked(_runs, outside, outside)
    assert done.status == 0, done.err
    assert "SalientCentre" in done.err  # the complaint about the short name, before it was announced
    recipes = ("salient_centre", "random")
    for name in recipes:
        results = json.loads((outside / "runs" / name / "test_0" / "results.json").read_text())
        assert results["n"] == 2
        assert results["metrics"]["retention"] == pytest.approx(0.11, abs=0.01)
    configs = {name: (outside / "runs" / name / "test_0" / "config.yaml").read_text() for name in recipes}
    assert "my_pruners.SalientCentre" in configs["salient_centre"] and "pull: 2.0" in configs["salient_centre"]
    assert "elsewhere.NotAnnounced" in configs["random"]


def test_a_broken_plug_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("mine", "no_such_module_at_all", lightning_cli.PLUGINS)
    monkeypatch.setattr(lightning_cli, "entry_points", lambda group: [broken] if group == lightning_cli.PLUGINS else [])
    with pytest.raises(GlimpseError, match=r"mine \(no_such_module_at_all, .*ModuleNotFoundError"):
        lightning_cli.prepare_parsing()
