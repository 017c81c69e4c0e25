"""Two ranks evaluate as one does, also where the samples do not divide evenly, and train on noise of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from ranks import on_two_ranks
from sharded_runs import data, module, trainer
from test_module import glyphs, random_module

from glimpse_lightning.data.batch import Batch
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives.base import Objective, StepResult
from glimpse_lightning.training.strategies import FSDP2


def _evaluate(root: Path, **kwargs: Any) -> dict[str, Any]:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    module = random_module(0.3)
    runner = Trainer(accelerator="cpu", logger=False, default_root_dir=root, **quiet, **kwargs)
    runner.test(module, datamodule=glyphs(5, batch=2), verbose=False)
    assert module.summary is not None
    figures = module.summary.metrics
    return {"ids": sorted(record.id for record in module.summary.records), **figures}


def _on_a_rank(root: Path, strategy: str) -> dict[str, Any]:
    return _evaluate(root, devices=2, strategy=FSDP2() if strategy == "fsdp2" else strategy)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return _evaluate(tmp_path_factory.mktemp("alone"), devices=1)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_ranks_agree_with_one(strategy: str, alone: dict[str, Any], tmp_path: Path) -> None:
    assert len(alone["ids"]) == 5
    for rank in on_two_ranks(_on_a_rank, tmp_path, tmp_path, strategy):
        assert close(rank, alone)


class _Drawing(Objective):
    """Trains nothing, and remembers the noise of each step."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def step(self, model: PrunedVLM, batch: Batch) -> StepResult:
        self.drawn.append(torch.rand(()).item())
        assert model.pruner is not None
        return StepResult(torch.stack([0.0 * p.sum() for p in model.pruner.parameters()]).sum())


def _draw(root: Path) -> list[float]:
    objective = _Drawing()
    runner = trainer(root, [], devices=2, strategy="ddp", limit_val_batches=0, max_steps=2)
    runner.fit(module(objective), datamodule=data(2))
    return objective.drawn


@pytest.mark.timeout(180)
def test_no_two_ranks_or_steps_draw_the_same_noise(tmp_path: Path) -> None:
    """Gates, dropout and rollouts of equal noise would not be as many samples as there are ranks."""
    drawn = on_two_ranks(_draw, tmp_path, tmp_path)
    assert [len(rank) for rank in drawn] == [2, 2]
    assert len({*drawn[0], *drawn[1]}) == 4


def close(a: Any, b: Any) -> bool:
    """Equality up to rounding, at any depth."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[name], b[name]) for name in a)
    return abs(a - b) < 1e-5 if isinstance(a, float) else a == b
