"""What goes wrong in a long run: pre-emption, losses that are no numbers, no memory left; and a bar that tells."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from glimpse_lightning.callbacks import RunProgress
from glimpse_lightning.callbacks.run_progress import visual_tokens
from runs import SMALL, run, scalars, write_recipe

import glimpse_lightning as gl
from glimpse_lightning.cli import explain
from glimpse_lightning.module import PruningModule
from glimpse_lightning.objectives import KL, StepResult
from glimpse_lightning.run_folder import saved_checkpoints

QUICK = ("--model.test_after_fit", "false", "--trainer.limit_val_batches", "0")


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, SMALL.replace("every_n_steps: 2", "every_n_steps: 100"))
    assert run("fit", recipe, tmp_path / "whole", *QUICK) == 0
    step, calls = KL.step, []

    def preempted(self: KL, *args: Any) -> StepResult:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(KL, "step", preempted)
    with pytest.raises(SystemExit) as stopped:
        run("fit", recipe, tmp_path / "runs", *QUICK)
    assert stopped.value.code == 143
    folder = tmp_path / "runs" / "small" / "fit_0"
    assert [path.name for path in saved_checkpoints(folder / "checkpoints")] == ["step=000003.ckpt"]
    assert run("fit", recipe, tmp_path / "runs", *QUICK) == 0
    assert len(calls) == 8
    theirs = scalars(tmp_path / "whole" / "small" / "fit_0")
    assert scalars(folder)["train/loss"] == theirs["train/loss"]


def test_a_loss_that_is_no_number_names_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(KL, "step", lambda *_: StepResult(torch.tensor(torch.nan)))
    assert run("fit", write_recipe(tmp_path), tmp_path / "runs", *QUICK) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: The loss of step 0 is nan on samples glyph_vqa/train/0/224/")
    assert "model.optimizer.lr" in message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_out_of_memory_says_which_knobs_to_turn(error: Exception) -> None:
    message = explain(error)
    assert message is not None
    for knob in ("data.batch_size", "accumulate_grad_batches", "group_size", "lora", "dtype"):
        assert knob in message
    assert explain(RuntimeError("something else")) is None


def test_the_bar_shows_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    module = PruningModule()
    module.configure_model()
    data = gl.GlyphVQA("val", 2, image_size=224)
    batch = module.model.backbone.collate([data[0], data[1]])
    assert visual_tokens(module, batch) == 2 * 64
    bar, clock = RunProgress(), iter([10.0, 12.0, 14.0])
    trainer: Any = SimpleNamespace(progress_bar_metrics={"train/loss": 1.0, "train/hard_retention": 0.1}, loggers=[])
    bar._trainer = trainer
    bar.disable()
    monkeypatch.setattr("glimpse_lightning.callbacks.run_progress.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("lightning.pytorch.callbacks.RichProgressBar.on_train_batch_end", lambda *_: None)
    for index in range(3):
        bar.on_train_batch_end(trainer, module, None, batch, index)
    shown = bar.get_metrics(trainer, module)
    assert (shown["loss"], shown["kept"], shown["samples/s"], shown["visual/s"]) == (1.0, 0.1, "1.00", "64")
    assert float(str(shown["GB"])) > 0
