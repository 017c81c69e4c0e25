"""Backbones that ship in the package, each trained from random weights by a recipe of ``recipes/pretrain``."""

from __future__ import annotations

from pathlib import Path

TINY = "glimpse-tiny"
DENSE = "glimpse-dense"
LLAVA = "glimpse-llava"
EMBEDDED = (TINY, DENSE, LLAVA)


def folder_of(name: str) -> Path:
    """Folder of an embedded backbone."""
    return Path(__file__).parent / name.replace("-", "_")


def source_of(name: str) -> str:
    """Location of the files of a backbone: a folder or a hub id."""
    return str(folder_of(name)) if name in EMBEDDED else name
