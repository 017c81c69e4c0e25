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
    try:
        with drafted(path) as draft:
            yield draft
    except OSError as error:
        if error.errno in FULL_DISK:
            raise full_disk(path) from error
        raise


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """As :func:`replacing`, for callers with an error of their own for a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    remove(draft)
    try:
        yield draft
        put(draft, path)
    finally:
        remove(draft)


def put(draft: Path, path: Path) -> None:
    """Rename a whole file or folder. Whatever had the name before is removed, or has its name again if this fails."""
    for file in draft.rglob("*") if draft.is_dir() else [draft]:
        _sync(file)
    before = draft.with_name(f"{draft.name}.old")
    if path.is_dir():  # a folder cannot be replaced in one step
        path.rename(before)
    try:
        os.replace(draft, path)
    except OSError:
        if before.exists():
            before.rename(path)
        raise
    remove(before)


def _sync(path: Path) -> None:
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
