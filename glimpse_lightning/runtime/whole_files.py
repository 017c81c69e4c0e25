"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glimpse_lightning.runtime.errors import GlimpseError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of an exhausted quota."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path`` to write to. It is renamed to ``path`` once it is complete, and deleted if
    writing fails.

    Works for a file and for a folder.

    Raises:
        GlimpseError: if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield draft
        if draft.is_file():
            sync(draft)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(draft, path)
    except BaseException as error:
        remove(draft)
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise full_disk(path) from error
        raise


def sync(path: Path) -> None:
    """Force a file to the disk. Without this before the renaming, a crash could leave the name with incomplete
    contents.
    """
    if path.is_file():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def full_disk(path: Path | str | None) -> GlimpseError:
    """The error for a disk that is full."""
    what = f"writing {path}" if path else "writing"
    return GlimpseError(
        f"No space left on the device while {what}. Nothing half-written was kept: free some space and run the same "
        "command again (it resumes from the last whole checkpoint), or choose another disk with "
        "--trainer.default_root_dir."
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Delete a file or a folder; it may be missing."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
