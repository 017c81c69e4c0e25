"""The folder of a batch job's output, which belongs to one job and is written by one process at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import read_json
from glimpse_lightning.runtime.run_folder import RunFolder
from glimpse_lightning.runtime.whole_files import write_text

JOB = ".job.json"
"""File with the job of an output. Its name is hidden, as readers of Parquet folders pass over hidden files."""


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Take an output folder for a job, until this process ends.

    Args:
        folder: the folder, which may be missing.
        identity: plain values of everything that changes an answer.

    Raises:
        GlimpseError: where the folder is another job's, or another process writes to it.
    """
    file = folder / JOB
    if folder.exists() and not folder.is_dir():
        raise GlimpseError(f"{folder}: expected a folder for the output, but it is a file. Name another.")
    if not file.is_file() and any(folder.glob("*.parquet")):
        raise GlimpseError(
            f"{folder}: expected an empty folder or this job's output, but it holds other Parquet files. Name another "
            "folder."
        )
    if not RunFolder(folder).lock():
        raise GlimpseError(f"{folder}: another process writes to this folder. Wait for its end, or name another.")
    if not file.is_file():
        write_text(file, json.dumps(identity, indent=1, sort_keys=True))
    before = read_json(file)
    if changed := sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name)):
        listed = ", ".join(f"`{name}` was {before.get(name)!r} and is {identity.get(name)!r}" for name in changed)
        raise GlimpseError(
            f"{folder}: holds the answers of another job: {listed}. Name another `--output`, or give the options of "
            "before to go on."
        )
