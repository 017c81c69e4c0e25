"""What version 0.1.0 wrote (commit 9522cf9, before files moved) is still read: golden/written_before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import run

import glimpse_lightning as gl
from glimpse_lightning.cli.recipe_check import check

OLD = Path(__file__).parent / "golden/written_before"
CHECKPOINT = "checkpoints/step=000002.ckpt"
FAST = ("--trainer.enable_progress_bar", "false")


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    """The run's folder, where it stood among the runs of its recipe."""
    return Path(shutil.copytree(OLD, tmp_path / "runs/recipe/fit_0"))


def figures(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    return {name: metrics[name] for name in ("accuracy", "retention", "evidence_recall")}


def test_a_pruner_is_loaded() -> None:
    pruner = gl.load_pruner(OLD / "pruner", any_backbone=True)
    (stage,) = pruner.stages
    assert isinstance(stage.scorer, gl.scorers.VIP)
    assert isinstance(stage.policy, gl.policies.Threshold)
    assert (stage.after_layer, stage.policy.threshold, stage.scorer.query) == (1, 0.5, "glimpse")


def test_a_run_folder_serves_a_test_of_its_recipe(fit: Path) -> None:
    root = fit.parents[1]
    assert run("test", fit / "recipe.yaml", root, "--model.baselines", "[]", *FAST) == 0
    assert figures(root / "recipe/test_0") == pytest.approx(figures(fit), abs=1e-6)


def test_a_checkpoint_alone_says_how_its_model_is_built(fit: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "data_only.yaml"
    recipe.write_text(yaml.safe_dump({"data": yaml.safe_load((fit / "recipe.yaml").read_text())["data"]}))
    root = tmp_path / "again"
    assert run("test", recipe, root, "--model.baselines", "[]", "--ckpt_path", str(fit / CHECKPOINT), *FAST) == 0
    assert figures(root / "data_only/test_0") == pytest.approx(figures(fit), abs=1e-6)


def test_a_checkpoint_is_trained_on_by_its_resolved_configuration(fit: Path, tmp_path: Path) -> None:
    steps = ("--ckpt_path", str(fit / CHECKPOINT), "--trainer.max_steps", "3", "--model.test_after_fit", "false")
    assert run("fit", fit / "config.yaml", tmp_path / "on", *steps, *FAST) == 0
    (results,) = (tmp_path / "on").glob("*/fit_0/results.json")
    assert json.loads(results.read_text())["steps"] == 3


def test_class_paths_of_resolved_configurations_are_found(tmp_path: Path) -> None:
    config = yaml.safe_load((OLD / "config.yaml").read_text())
    config["trainer"]["strategy"] = {"class_path": "glimpse_lightning.strategies.FSDP2"}  # as an overlay resolved it
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(config))
    (checked,) = check("fit", [resolved])
    assert checked.config["trainer"]["strategy"]["class_path"].endswith("FSDP2")
