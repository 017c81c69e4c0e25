"""A folder of downloads as Hugging Face keeps it, so that revisions can be asked for without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from glimpse_lightning.backbones.embedded import source_of

OFFLINE = {"local_files_only": True}


def store(cache: Path, repo: str, revisions: Mapping[str, Path]) -> Path:
    """Put folders into ``cache`` as the revisions of a repository, by name; returns ``cache``."""
    place = cache / f"models--{repo.replace('/', '--')}"
    for name, folder in revisions.items():
        commit = commit_of(name)
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / name).write_text(commit)
    return cache


def commit_of(revision: str) -> str:
    """The commit that a revision of :func:`store` is at."""
    return hashlib.sha1(revision.encode()).hexdigest()


def tiny(folder: Path, max_pixels: int) -> Path:
    """A copy of glimpse-tiny whose processor bounds images at ``max_pixels``."""
    shutil.copytree(source_of("glimpse-tiny"), folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["size"]["longest_edge"] = max_pixels
    path.write_text(json.dumps(settings))
    return folder
