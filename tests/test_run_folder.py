from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch

from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.run_folder import (
    CONFIG,
    RESULTS,
    TRAINED,
    RunFolder,
    claim_run,
    damage,
    finished_fits,
    saved_checkpoints,
)
from glimpse_lightning.runtime.whole_files import replacing, write_text


def _claim(root: Path, config: str = "a: 1", command: str = "fit") -> RunFolder:
    run = claim_run(root, "recipe", command, config)
    write_text(run.path / CONFIG, config)
    return run


def test_an_unfinished_run_is_taken_up_by_the_same_command_only(tmp_path: Path) -> None:
    first = _claim(tmp_path)
    assert first.path == tmp_path / "recipe" / "fit_0"
    assert _claim(tmp_path).path == first.path
    other = _claim(tmp_path, config="a: 2")
    assert other.path.name == "fit_1"
    write_text(other.path / RESULTS, "{}")
    assert _claim(tmp_path, config="a: 2").path.name == "fit_2"
    assert _claim(tmp_path, command="test").path.name == "test_0"


def _claim_elsewhere(root: Path, answers: multiprocessing.SimpleQueue) -> None:
    answers.put(_claim(root).path.name)


def test_a_run_that_still_lives_is_left_alone(tmp_path: Path) -> None:
    _claim(tmp_path)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_claim_elsewhere, args=(tmp_path, answers))
    process.start()
    process.join(60)
    assert answers.get() == "fit_1"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EIO, errno.EPERM])
def test_a_file_system_without_locks_is_as_good(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        first = _claim(tmp_path)
        assert _claim(tmp_path).path == first.path
    assert ["without locks" in str(each.message) for each in said] == [True]  # once


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_a_lock_that_another_process_holds_is_respected(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    run = _claim(tmp_path)
    monkeypatch.setattr("fcntl.lockf", refuse)
    assert not RunFolder(run.path).lock()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(PermissionError):
        RunFolder(tmp_path / "run").lock()


def test_a_fit_that_others_use_has_a_mark_and_a_checkpoint(tmp_path: Path) -> None:
    assert finished_fits(tmp_path, "recipe") == []
    marks = [(RESULTS, True), (RESULTS, False), (None, True), (TRAINED, True), (TRAINED, False)]
    for number, (mark, saved) in enumerate(marks):
        run = RunFolder(tmp_path / "recipe" / f"fit_{number}")
        if mark:
            write_text(run.path / mark, "{}")
        if saved:
            write_text(run.checkpoints / "step=1.ckpt", "")
    assert [run.path.name for run in finished_fits(tmp_path, "recipe")] == ["fit_3", "fit_0"]


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    for name in ("step=9.ckpt", "step=10.ckpt", ".step=11.ckpt.77", "best.ckpt"):
        (tmp_path / name).touch()
    assert [path.name for path in saved_checkpoints(tmp_path)] == ["step=9.ckpt", "step=10.ckpt"]


def test_damaged_checkpoints_are_passed_over_with_a_message(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    torch.save({"x": torch.ones(1000)}, run.checkpoints / "step=1.ckpt")
    whole = (run.checkpoints / "step=1.ckpt").read_bytes()
    (run.checkpoints / "step=2.ckpt").write_bytes(whole[: len(whole) // 2])
    (run.checkpoints / "step=3.ckpt").write_bytes(b"")
    said: list[str] = []
    assert run.last_checkpoint(said.append) == run.checkpoints / "step=1.ckpt"
    assert ["step=3" in said[0], "step=2" in said[1], len(said)] == [True, True, 2]
    assert damage(run.checkpoints / "step=1.ckpt") is None
    assert RunFolder(tmp_path / "none").last_checkpoint() is None


def test_a_whole_checkpoint_with_unusual_contents_is_not_damaged(tmp_path: Path) -> None:
    torch.save({"x": Path("y")}, tmp_path / "step=1.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    assert damage(tmp_path / "step=1.ckpt") is None


@pytest.mark.parametrize("folder", [False, True])
def test_replacing_is_all_or_nothing(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "x"

    def write(draft: Path, text: str) -> None:
        if folder:
            draft.mkdir()
        (draft / "y" if folder else draft).write_text(text)

    for text in ("old", "new"):
        with replacing(path) as draft:
            write(draft, text)
    with pytest.raises(GlimpseError, match="No space left"), replacing(path) as draft:  # noqa: PT012
        write(draft, "half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (path / "y" if folder else path).read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_other_errors_pass_through_replacing(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), replacing(tmp_path / "x"):
        raise PermissionError
