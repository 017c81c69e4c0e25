"""The bar counts the steps of the whole training, also after an interruption, and says which pass a test is in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import SMALL, run, write_recipe

from glimpse_lightning.callbacks import RunProgress
from glimpse_lightning.training.module import PruningModule

Shown = list[tuple[str, float, float | None]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Description, count and total of the bar after each batch."""
    found: Shown = []

    def note(name: str, bar_id: str) -> None:
        real = getattr(RunProgress, name)

        def call(self: RunProgress, *args: Any, **kwargs: Any) -> None:
            real(self, *args, **kwargs)
            assert self.progress is not None
            task = self.progress.tasks[getattr(self, bar_id)]
            found.append((task.description, task.completed, task.total))

        monkeypatch.setattr(RunProgress, name, call)

    note("on_train_batch_end", "train_progress_bar_id")
    note("on_test_batch_end", "test_progress_bar_id")
    return found


UNTESTED = ("--model.test_after_fit", "false", "--trainer.limit_val_batches", "0")


def recipe_of(tmp_path: Path, **settings: str) -> Path:
    text = SMALL.replace("  enable_progress_bar: false\n", "")
    for old, new in settings.items():
        text = text.replace(*{"steps": ("max_steps: 8", new), "size": ("size: 64", f"size: {new}")}[old])
    return write_recipe(tmp_path, text)


def test_short_epochs_show_step_and_epoch(tmp_path: Path, shown: Shown) -> None:
    recipe = recipe_of(tmp_path, steps="max_epochs: 3", size="4")
    assert run("fit", recipe, tmp_path, "--model.test_after_fit", "false", "--trainer.val_check_interval", "null") == 0
    assert shown == [(f"Training, epoch {step // 2 + 1}/3", step + 1, 6) for step in range(6)]


def test_accumulated_batches_are_one_step(tmp_path: Path, shown: Shown) -> None:
    recipe = recipe_of(tmp_path)
    flags = ("--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "4")
    assert run("fit", recipe, tmp_path, *UNTESTED, *flags) == 0
    assert [(count, total) for _, count, total in shown] == [(step, 4) for step in (0, 1, 1, 2, 2, 3, 3, 4)]


def test_a_resumed_run_goes_on_counting(tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tmp_path)
    step = PruningModule.training_step

    def stops(self: PruningModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 5:
            raise RuntimeError("pulled the plug")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PruningModule, "training_step", stops)
    with pytest.raises(RuntimeError, match="plug"):
        run("fit", recipe, tmp_path, *UNTESTED)
    monkeypatch.setattr(PruningModule, "training_step", step)
    shown.clear()
    assert run("fit", recipe, tmp_path, *UNTESTED) == 0
    assert shown == [("Training, epoch 1", count, 8) for count in (5, 6, 7, 8)]  # from the checkpoint of step 4


def test_the_passes_of_a_test_have_names(tmp_path: Path, shown: Shown) -> None:
    recipe = recipe_of(tmp_path)
    flags = ("--model.scorer", "AttentionRank", "--model.policy", "KeepRatio", "--model.policy.ratio", "0.2")
    assert run("test", recipe, tmp_path, *flags, "--model.objective", "null") == 0
    assert shown == [(f"Testing {name}", 1, 1) for name in ("full and pruned", "baselines")]
