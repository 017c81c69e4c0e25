"""Several threads may write the same file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from glimpse_lightning.runtime.whole_files import replacing


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
