"""The folder of a run, and the search for the folder of an interrupted run.

``<root>/<recipe>/<command>_<number>/``, where the root is ``--trainer.default_root_dir``. A run is finished once its
``results.json`` exists, which is written last. A fit that ends with a test writes the file ``trained`` before the test,
so that a failed test does not lose the training.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader

from glimpse_lightning.runtime.whole_files import remove

RESULTS, CONFIG, RECIPE = "results.json", "config.yaml", "recipe.yaml"
ANSWERS = "answers"
"""Name of the file of `predict`'s answers, without its suffix."""
TRAINED = "trained"
HELD = (errno.EACCES, errno.EAGAIN)
"""Error numbers of POSIX for a lock that another process holds; all others are errors of locking itself."""


def common_folder(folder: Path) -> Path:
    """The folder of all runs of a recipe, where ``folder`` is one of them; else ``folder`` itself."""
    return folder.parent if (folder / RECIPE).is_file() else folder


class RunFolder:
    """One run's folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def finished(self) -> bool:
        return (self.path / RESULTS).is_file()

    @property
    def trained(self) -> bool:
        """Whether a fit has taken its last step and saved the trained weights."""
        return self.finished or (self.path / TRAINED).is_file()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def lock(self) -> bool:
        """Lock the folder until this process ends; false if another running process holds the lock.

        Where the system or the file system has no locks (Windows; NFS without its lock daemon, some FUSE and Lustre
        mounts), every call succeeds.

        Raises:
            OSError: if the folder cannot be written.
        """
        try:
            import fcntl
        except ImportError:  # Windows: no protection against two equal commands at once
            return True
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            # Not flock: data workers would inherit the lock and hold it for seconds after a killed parent.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                os.close(lock)
                return False
            warnings.warn(  # Python shows equal warnings once
                f"{self.path.parent} lies on a file system without locks ({error.strerror}): do not run two equal "
                "commands there at once, or both write to one folder.",
                stacklevel=1,
            )
        self._lock = lock
        return True

    def remove_if_not_started(self) -> None:
        """Delete the folder of a run that failed before it wrote weights or answers, and its recipe's folder if no
        other run is in it.
        """
        if not (self.finished or saved_checkpoints(self.checkpoints) or any(self.path.rglob("*.jsonl"))):
            remove(self.path)
            with suppress(OSError):
                self.path.parent.rmdir()

    def last_checkpoint(self, say: Callable[[str], None] = print) -> Path | None:
        """The newest checkpoint that can be read; damaged ones are skipped and reported through ``say``."""
        for path in reversed(saved_checkpoints(self.checkpoints)):
            problem = damage(path)
            if problem is None:
                return path
            say(f"Checkpoint {path} is damaged ({problem}); falling back to the one before it.")
        return None


def saved_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in ``folder``, the oldest first."""
    found = [(re.fullmatch(r"step=(\d+)\.ckpt", path.name), path) for path in folder.glob("step=*.ckpt")]
    return [path for match, path in sorted((int(match[1]), path) for match, path in found if match)]


def damage(path: Path) -> str | None:
    """Description of the damage to a checkpoint; ``None`` if it can be read."""
    if path.is_dir():
        return _damage_of_shards(path)
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # A whole file can hold things that only `weights_only=False` reads; a truncated one is no zip file.
        return None if zipfile.is_zipfile(path) else _first_line(error)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        return _first_line(error)
    return None


def _damage_of_shards(folder: Path) -> str | None:
    """Description of the damage to a sharded checkpoint, with one file per rank; ``None`` if it can be read."""
    try:
        metadata = FileSystemReader(folder).read_metadata()
    except Exception as error:  # pickle raises errors of many types for truncated files
        return f"{type(error).__name__}: {_first_line(error)}"
    ends: dict[str, int] = {}
    for piece in (metadata.storage_data or {}).values():
        ends[piece.relative_path] = max(ends.get(piece.relative_path, 0), piece.offset + piece.length)
    for name, end in ends.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < end:
            return f"{name} is {'cut short' if file.is_file() else 'missing'}"
    rest = folder / "meta.pt"  # Lightning's name of the file for values that are no tensors
    return damage(rest) if rest.is_file() else f"{rest.name} is missing"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _numbered(recipe_folder: Path, command: str) -> list[tuple[int, Path]]:
    found = [(re.fullmatch(rf"{command}_(\d+)", path.name), path) for path in recipe_folder.glob(f"{command}_*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def claim_run(
    root: Path, recipe: str, command: str, config: str, same: Callable[[Path], bool] = lambda _: True
) -> RunFolder:
    """The folder of the newest unfinished run of the same command, or else a new one.

    Args:
        root: folder of all runs.
        recipe: name of the recipe.
        command: ``fit``, ``test``, ...
        config: the resolved configuration as text; a run resumes only under an equal one.
        same: predicate of a folder: whether the data of its run are unchanged.
    """
    runs = _numbered(root / recipe, command)
    if runs:
        newest = RunFolder(runs[-1][1])
        saved = newest.path / CONFIG
        mine = saved.is_file() and saved.read_text(encoding="utf-8") == config and same(newest.path)
        if not newest.finished and mine and newest.lock():
            return newest
    number = runs[-1][0] + 1 if runs else 0
    while True:
        run = RunFolder(root / recipe / f"{command}_{number}")
        if not run.path.exists() and run.lock():
            return run
        number += 1


def finished_fits(root: Path, recipe: str) -> list[RunFolder]:
    """The runs of `fit` of a recipe whose training has ended and left a checkpoint, the newest first."""
    runs = [RunFolder(path) for _, path in reversed(_numbered(root / recipe, "fit"))]
    return [run for run in runs if run.trained and saved_checkpoints(run.checkpoints)]
