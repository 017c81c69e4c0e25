"""What goes wrong in a long run: pre-emption, losses that are no numbers, no memory left; and a bar that tells."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import on_two_ranks
from runs import SMALL, run, scalars, write_recipe
from sharded_runs import fit
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import glimpse_lightning as gl
from glimpse_lightning.__main__ import explain
from glimpse_lightning.callbacks import RunCheckpoints, RunProgress
from glimpse_lightning.evaluation.module import EvaluationModule
from glimpse_lightning.objectives import GRPO, KL, StepResult
from glimpse_lightning.runtime.run_folder import RunFolder, damage, saved_checkpoints
from glimpse_lightning.training.module import PruningModule

QUICK = ("--model.test_after_fit", "false", "--trainer.limit_val_batches", "0")


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, SMALL.replace("every_n_steps: 2", "every_n_steps: 100"))
    flags = (*QUICK, "--trainer.max_steps", "5")
    assert run("fit", recipe, tmp_path / "whole", *flags) == 0
    step, calls = KL.step, []

    def preempted(self: KL, *args: Any) -> StepResult:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(KL, "step", preempted)
    with pytest.raises(SystemExit) as stopped:
        run("fit", recipe, tmp_path / "runs", *flags)
    assert stopped.value.code == 143
    folder = tmp_path / "runs" / "small" / "fit_0"
    assert [path.name for path in saved_checkpoints(folder / "checkpoints")] == ["step=000003.ckpt"]
    assert run("fit", recipe, tmp_path / "runs", *flags) == 0
    assert len(calls) == 5
    theirs = scalars(tmp_path / "whole" / "small" / "fit_0")
    assert scalars(folder)["train/loss"] == theirs["train/loss"]


def _fit_in_a_group(recipe: Path, root: Path, flags: tuple[str, ...]) -> None:
    """Train in a process group of its own, with a data worker, until all of it is told to stop."""
    os.setpgrp()
    torch.set_num_threads(torch.get_num_threads())
    step = KL.step

    def slow(self: KL, *args: Any) -> StepResult:
        (root / "training").touch()
        time.sleep(0.2)
        return step(self, *args)

    KL.step = slow  # type: ignore[method-assign]
    sys.exit(run("fit", recipe, root, *flags))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_saves(number: signal.Signals, tmp_path: Path) -> None:
    """As `timeout`, SLURM and Ctrl-C send it: workers get it too, and must not fail the step that is to be saved."""
    text = SMALL.replace("every_n_steps: 2", "every_n_steps: 1000").replace("num_workers: 0", "num_workers: 2")
    recipe, root = write_recipe(tmp_path, text), tmp_path / "runs"
    root.mkdir()
    flags = (*QUICK, "--trainer.max_steps", "500")
    child = multiprocessing.get_context("fork").Process(target=_fit_in_a_group, args=(recipe, root, flags))
    child.start()
    deadline = time.monotonic() + 60
    while not (root / "training").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    assert child.pid is not None
    os.killpg(child.pid, number)
    child.join(60)
    assert child.exitcode == 128 + number
    folder = root / "small" / "fit_0"
    (saved,) = saved_checkpoints(folder / "checkpoints")
    assert 0 < int(saved.stem.removeprefix("step=")) < 100
    assert RunFolder(folder).last_checkpoint() == saved


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = KL.step, []

    def impatient(self: KL, *args: Any) -> StepResult:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(KL, "step", impatient)
    before = signal.getsignal(signal.SIGINT)
    assert run("fit", write_recipe(tmp_path), tmp_path / "runs", *QUICK) == 130
    signal.signal(signal.SIGINT, before)
    assert len(calls) == 3


TESTED = """\
model: {after_layer: 1, scorer: Random, policy: {class_path: TopK, init_args: {count: 8}}, max_new_tokens: 3}
data: {test: {class_path: GlyphVQA, init_args: {split: test, size: 3, image_size: 224}}, num_workers: 0}
trainer: {accelerator: cpu, enable_progress_bar: false, logger: false}
"""


def test_ctrl_c_in_a_test_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(tmp_path, TESTED)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits that it is ignored
    with monkeypatch.context() as context:
        context.setattr(EvaluationModule, "test_step", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert run("test", recipe, tmp_path / "runs") == 130
    assert "test_0 has no results yet; the same command starts again in that folder." in caplog.text
    assert run("test", recipe, tmp_path / "runs") == 0
    assert [path.name for path in (tmp_path / "runs" / "small").iterdir()] == ["test_0"]


def test_sigterm_ends_a_test_at_once(tmp_path: Path) -> None:
    flags = ["--trainer.default_root_dir", str(tmp_path), "--data.num_workers", "0", "--trainer.callbacks", "[]"]
    command = ["test", "--config", "attention_rank", *flags]
    child = multiprocessing.get_context("fork").Process(target=gl.cli.main, args=(command,))
    child.start()
    folder = tmp_path / "attention_rank" / "test_0"
    deadline = time.monotonic() + 60
    while not (folder / "inputs.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)  # into the first questions; 2,000 take minutes
    child.terminate()
    child.join(20)
    assert child.exitcode == -signal.SIGTERM


def _fit_and_die(recipe: Path, root: Path, flags: tuple[str, ...], fatal: int) -> None:
    """Train in a process of its own, which SIGKILL ends in the middle of step ``fatal``."""
    # A forked process makes torch's pool of threads anew; the threads that load weights would race for it.
    torch.set_num_threads(torch.get_num_threads())
    step, calls = GRPO.step, []

    def killed(self: GRPO, *args: Any) -> StepResult:
        calls.append(1)
        if len(calls) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    GRPO.step = killed  # type: ignore[method-assign]
    run("fit", recipe, root, *flags)


def test_kill_9_in_mid_epoch_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Sampler, random numbers, optimizer, and GRPO's answers between their iterations."""
    recipe = write_recipe(tmp_path, SMALL.replace("every_n_steps: 2", "every_n_steps: 3"))
    rewards = "{length: {weight: 1.0, free: 1, longest: 4}}"
    options = f"iterations: 2, group_size: 4, max_new_tokens: 4, temperature: 4.0, rewards: {rewards}"
    objective = f"{{class_path: GRPO, init_args: {{{options}}}}}"
    flags = (*QUICK, "--model.objective", objective, "--model.optimizer.lr", "1e-4", "--trainer.max_steps", "6")
    assert run("fit", recipe, tmp_path / "whole", *flags) == 0
    child = multiprocessing.get_context("fork").Process(target=_fit_and_die, args=(recipe, tmp_path / "runs", flags, 6))
    child.start()
    child.join(100)
    assert child.exitcode == -signal.SIGKILL
    folder = tmp_path / "runs" / "small" / "fit_0"
    assert [path.name for path in saved_checkpoints(folder / "checkpoints")] == ["step=000003.ckpt"]
    assert run("fit", recipe, tmp_path / "runs", *flags) == 0
    theirs = scalars(tmp_path / "whole" / "small" / "fit_0")
    assert len(theirs["train/loss"]) == 6 and len(set(theirs["train/loss"].values())) > 3
    for tag, curve in theirs.items():
        if tag.startswith("train/") and not tag.endswith("_per_second"):
            assert scalars(folder)[tag] == curve, tag


def _sharded_checkpoint(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    state = {"weight": distribute_tensor(torch.arange(4096.0), mesh, [Shard(0)])}
    torch.distributed.checkpoint.save(state, checkpoint_id=folder)
    if torch.distributed.get_rank() == 0:
        torch.save({"epoch": 0}, folder / "meta.pt")
    torch.distributed.barrier()


def test_a_truncated_shard_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step=000002.ckpt"
    path.parent.mkdir()
    on_two_ranks(_sharded_checkpoint, tmp_path, path)
    assert damage(path) is None
    for name, problem in [("__1_0.distcp", "__1_0.distcp is cut short"), ("meta.pt", ""), (".metadata", "")]:
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])
        assert problem in (damage(path) or "whole")
        (path / name).unlink()
        assert damage(path) is not None
        (path / name).write_bytes(whole)
    torch.save({"state_dict": {}}, path.with_name("step=000001.ckpt"))
    (path / "__0_0.distcp").unlink()
    said: list[str] = []
    assert RunFolder(tmp_path).last_checkpoint(said.append) == path.with_name("step=000001.ckpt")
    assert "__0_0.distcp is missing" in said[0]


def _preempted(root: Path) -> tuple[list[str], int]:
    """SIGTERM reaches one rank only, in the middle of a step."""
    step = KL.step

    def terminated(self: KL, *args: Any) -> StepResult:
        if torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    KL.step = terminated  # type: ignore[method-assign]
    try:
        fit(root, "kl", 2, callbacks=[RunCheckpoints(every_n_steps=100)], enable_checkpointing=True)
    except SystemExit as stopped:
        return [path.name for path in saved_checkpoints(root / "checkpoints")], int(str(stopped.code))
    return [], 0


def test_sigterm_to_one_of_two_ranks_stops_both_with_a_checkpoint(tmp_path: Path) -> None:
    assert on_two_ranks(_preempted, tmp_path, tmp_path) == [(["step=000001.ckpt"], 143)] * 2
    assert damage(tmp_path / "checkpoints" / "step=000001.ckpt") is None


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


def test_a_torchvision_of_another_torch_is_one_paragraph() -> None:
    """As transformers reports it, from whatever it was importing."""
    error = ModuleNotFoundError("Could not import module 'PreTrainedModel'")
    error.__cause__ = RuntimeError("operator torchvision::nms does not exist")
    message = explain(error)
    assert message is not None and "`pip uninstall torchvision`" in message
    assert explain(ModuleNotFoundError("Could not import module 'PreTrainedModel'")) is None


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:8592. This is typically"),
        torch.distributed.DistBackendError("NCCL error in: x.cpp:1, remote process exited or there was a"),
    ],
)
def test_a_rank_that_was_left_alone_points_at_the_others_message(error: Exception) -> None:
    message = explain(error)
    assert message is not None
    assert "Another rank of this run has ended" in message


def test_the_bar_shows_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    module = PruningModule()
    module.configure_model()
    data = gl.GlyphVQA("val", 2, image_size=224)
    batch = module.collate([data[0], data[1]])
    assert batch.visual_tokens == 2 * 64
    bar, clock = RunProgress(), iter([10.0, 12.0, 14.0])
    trainer: Any = SimpleNamespace(progress_bar_metrics={"train/loss": 1.0, "train/hard_retention": 0.1}, loggers=[])
    bar._trainer = trainer
    bar.disable()
    monkeypatch.setattr("glimpse_lightning.callbacks.run_progress.get_console", lambda: SimpleNamespace(width=120))
    monkeypatch.setattr("glimpse_lightning.callbacks.training_speed.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("lightning.pytorch.callbacks.RichProgressBar.on_train_batch_end", lambda *_: None)
    for index in range(3):
        bar.on_train_batch_end(trainer, module, None, batch, index)
    shown = bar.get_metrics(trainer, module)
    assert (shown["loss"], shown["kept"], shown["samples/s"], shown["visual/s"]) == (1.0, 0.1, "1.00", "64")
    assert float(str(shown["GB"])) > 0
    monkeypatch.setattr("glimpse_lightning.callbacks.run_progress.get_console", lambda: SimpleNamespace(width=80))
    assert bar.get_metrics(trainer, module) == {"loss": 1.0, "kept": 0.1}  # more would go on over several lines
