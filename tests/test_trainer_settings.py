"""Settings of the trainer that cannot be followed: one paragraph that names them, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.trainer.connectors.data_connector import _DataConnector
from lightning.pytorch.trainer.setup import _determine_batch_limits
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from runs import SMALL, run, write_recipe

from glimpse_lightning.cli.trainer_settings import readable_settings
from glimpse_lightning.runtime.errors import GlimpseError

REFUSED = {
    "--trainer.max_steps 0": ["`trainer.max_steps: 0`", "`test`"],
    "--trainer.max_epochs 0": ["`trainer.max_epochs: 0`"],
    "--trainer.limit_train_batches 0.0": ["`trainer.limit_train_batches: 0`"],
    "--trainer.max_steps -7": ["`trainer.max_steps`", "-7"],
    "--trainer.min_steps -1": ["`trainer.min_steps`", "at least 0"],
    "--trainer.accumulate_grad_batches 0": ["`trainer.accumulate_grad_batches`", "at least 1"],
    "--trainer.check_val_every_n_epoch 0": ["`trainer.check_val_every_n_epoch`", "at least 1"],
    "--trainer.gradient_clip_val -0.5": ["`trainer.gradient_clip_val`", "-0.5"],
    "--trainer.gradient_clip_algorithm length": ["`trainer.gradient_clip_algorithm`", "norm"],
    "--trainer.log_every_n_steps -1": ["`trainer.log_every_n_steps`"],
    "--trainer.num_sanity_val_steps -3": ["`trainer.num_sanity_val_steps`"],
    "--trainer.val_check_interval 0": ["`trainer.val_check_interval`", "`trainer.limit_val_batches: 0`"],
    "--trainer.val_check_interval 33 --trainer.check_val_every_n_epoch 1": ["`trainer.val_check_interval`", "(32)"],
    "--trainer.limit_val_batches 2.5": ["`trainer.limit_val_batches`", "2.5"],
    "--trainer.overfit_batches -1": ["`trainer.overfit_batches`"],
    "--trainer.fast_dev_run -2": ["`trainer.fast_dev_run`"],
    "--trainer.enable_checkpointing false": ["`trainer.enable_checkpointing: false`", "`RunCheckpoints`"],
    "--trainer.barebones true": ["`trainer.barebones: true`", "`bench`"],
    "--trainer.accelerator quantum": ["`trainer.accelerator`", "cpu"],
    "--trainer.accelerator tpu": ["torch_xla", "pip install"],
    "--trainer.strategy fsdp3": ["`trainer.strategy`", "fsdp3", "ddp"],
    "--trainer.precision transformer-engine": ["`trainer.precision`", "transformer_engine"],
    "--trainer.devices 0": ["`trainer.devices`"],
    "--trainer.devices two": ["`trainer.devices`", "int > 0"],
    "--trainer.num_nodes 2": ["`trainer.num_nodes: 2`", "srun", "MASTER_ADDR"],
    "--trainer.num_nodes 0": ["`trainer.num_nodes`", "at least 1"],
    "--trainer.profiler watch": ["`trainer.profiler`", "simple"],
    "--trainer.max_time 00:00:00:00": ["no step", "`trainer.max_time`"],
    "--trainer.max_time soon": ["`trainer.max_time`", "DD:HH:MM:SS"],
    "--trainer.logger false --trainer.callbacks lightning.pytorch.callbacks.LearningRateMonitor": ["no logger"],
    "--trainer.callbacks lightning.pytorch.callbacks.EarlyStopping --trainer.callbacks.monitor nothing": [
        "`nothing`", "val/accuracy"
    ],
    "--seed_everything -1": ["`seed_everything`", "4294967295"],
    "--seed_everything 4294967296": ["`seed_everything`", "4294967295"],
    "--ckpt_path best": ["No checkpoint best", "--ckpt_path"],
    "--ckpt_path last": ["No checkpoint last", "--ckpt_path"],
    "--ckpt_path hpc": ["No checkpoint hpc", "--ckpt_path"],
    "--data.num_workers -1": ["`data.num_workers`", "at least 0"],
    "--data.test_size 0": ["`data.test_size`", "at least 1"],
    "--data.fit_test_size -3": ["`data.fit_test_size`", "at least 1"],
    "--model.max_new_tokens 0": ["`model.max_new_tokens`", "at least 1"],
    "--model.optimizer.lr -1": ["`model.optimizer.lr`", "at least 0"],
    "--model.optimizer.lr_of.pruner -1": ["`model.optimizer.lr_of.pruner`", "at least 0"],
    "--model.optimizer.warmup 2": ["`model.optimizer.warmup`", "from 0 to 1"],
    "--model.optimizer.betas [0.9,1.0]": ["`model.optimizer.betas`", "below 1"],
}  # fmt: skip

SLOW = {
    f"--{flag}"
    for flag in (
        "trainer.max_epochs 0", "trainer.limit_train_batches 0.0", "trainer.accumulate_grad_batches 0",
        "trainer.check_val_every_n_epoch 0", "trainer.gradient_clip_algorithm length", "trainer.log_every_n_steps -1",
        "trainer.num_sanity_val_steps -3", "trainer.overfit_batches -1", "trainer.fast_dev_run -2",
        "trainer.devices 0", "trainer.num_nodes 0", "trainer.profiler watch", "seed_everything -1",
        "ckpt_path last", "ckpt_path hpc", "data.fit_test_size -3", "model.optimizer.lr -1",
    )
}  # fmt: skip
"""Settings that are refused by the lines that refuse another one above."""


def refusal(command: str, flags: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(command, write_recipe(folder), folder / "runs", "--model.test_after_fit", "false", *flags.split()) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "flags", [pytest.param(flags, marks=pytest.mark.slow if flags in SLOW else ()) for flags in REFUSED]
)
def test_a_setting_is_refused_by_name(flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal("fit", flags, tmp_path, capsys)
    for word in ("error: ", *REFUSED[flags]):
        assert word in said
    assert not list(tmp_path.glob("runs/small/*"))


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("test", "--trainer.limit_test_batches 0", "`trainer.limit_test_batches: 0` leaves `test` nothing"),
        ("validate", "--trainer.limit_val_batches 0", "`trainer.limit_val_batches: 0` leaves `validate` nothing"),
        ("predict", "--trainer.limit_predict_batches 0", "`trainer.limit_predict_batches: 0` leaves `predict` nothing"),
        ("test", "--trainer.limit_test_batches 3.5", "`trainer.limit_test_batches`: You have passed"),
        ("test", "--ckpt_path best", "other commands take the last finished fit"),
    ],
)
def test_other_commands(
    command: str, flags: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(command, f"{flags} --model.scorer Random", tmp_path, capsys)


def test_a_checkpoint_that_a_recipe_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, f"ckpt_path: best\n{SMALL}")
    assert run("fit", recipe, tmp_path / "runs") == 1
    assert "No checkpoint best" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "flags", "words"),
    [({}, "", "--ntasks-per-node=2"), ({"SLURM_NTASKS_PER_NODE": "1"}, "--trainer.devices 3", "`trainer.devices`: ")],
)
def test_slurm_with_other_tasks_than_devices(
    tasks: dict[str, str], flags: str, words: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ranks = dict.fromkeys(("PROCID", "LOCALID", "NODEID"), "0")
    job = {"JOB_ID": "7", "NTASKS": "2", "JOB_NAME": "mine", "NODELIST": "localhost", **ranks}
    for name, value in {**{f"SLURM_{name}": value for name, value in job.items()}, **tasks}.items():
        monkeypatch.setenv(name, value)
    assert words in refusal("fit", flags, tmp_path, capsys)


@pytest.mark.parametrize("root", ["small.yaml/below_a_file", "/proc/nowhere"])
def test_a_root_that_cannot_be_written(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", write_recipe(tmp_path), tmp_path / root) == 1
    said = capsys.readouterr().err
    assert root in said
    assert "`--trainer.default_root_dir`" in said


def _inside_lightning(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have something in a function of Lightning's own files fail by itself."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(_DataConnector, "prepare_data", fail)


@pytest.mark.parametrize("error", [ValueError("a defect"), TypeError("a defect"), RuntimeError("a defect")])
def test_defects_keep_their_traceback(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of our own code under Lightning's, before the first step; and of Lightning's that raises nothing by itself."""
    _inside_lightning(monkeypatch, error)
    with pytest.raises(type(error), match="a defect"):
        run("fit", write_recipe(tmp_path), tmp_path / "runs")
    monkeypatch.undo()
    with pytest.raises(TypeError, match="not supported"), readable_settings({}):
        _determine_batch_limits("two", "limit")  # type: ignore[arg-type]


def test_lightnings_own_word_for_it_counts_wherever_it_comes_from() -> None:
    with pytest.raises(GlimpseError, match=r"^`trainer.max_steps`: `max_steps` is odd$"):
        with readable_settings({"max_steps": 3}):
            raise MisconfigurationException("`max_steps`  is\nodd")
