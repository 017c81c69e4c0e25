"""Files and folders get their name when they are whole, and several threads may write the same one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from glimpse_lightning.runtime.whole_files import drafted, replacing


def test_threads_that_write_one_file_do_not_share_a_draft(tmp_path: Path) -> None:
    together = Barrier(4)

    def write(number: int) -> Path:
        with replacing(tmp_path / "file") as draft:
            draft.write_text(str(number))
            together.wait(timeout=20)  # all drafts are open at once
            assert draft.read_text() == str(number)
        return draft

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(write, range(4)))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_get_its_name_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("whole")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), drafted(folder) as draft:  # noqa: PT012
        draft.mkdir()
        (draft / "new").write_text("whole")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["folder", "folder/old"]


def test_every_file_of_a_folder_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((tmp_path / "folder").exists()))
    with drafted(tmp_path / "folder") as draft:
        (draft / "deep").mkdir(parents=True)
        (draft / "one").write_text("1")
        (draft / "deep/two").write_text("2")
    assert synced == [False, False]
