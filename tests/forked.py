"""A function in a process of its own, forked, so that nothing is imported anew."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it printed."""

    status: int | None
    out: str
    err: str


def forked(function: Callable[..., Any], folder: Path, *args: Any, timeout: float = 250) -> Done:
    """What becomes of ``function(*args)``, whose result is the exit status.

    Args:
        folder: for what it prints.
        timeout: in seconds; after it the status is ``None``.
    """
    files = folder / "stdout", folder / "stderr"
    child = multiprocessing.get_context("fork").Process(target=_child, args=(files, function, args))
    child.start()
    child.join(timeout)
    status = child.exitcode
    if status is None:
        child.kill()
    return Done(status, *(file.read_text() for file in files))


def _child(files: tuple[Path, Path], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False, buffering=1) for number in (1, 2))  # noqa: SIM115
    torch.set_num_threads(1)
    sys.exit(function(*args))
