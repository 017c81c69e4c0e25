"""A checkpoint's training settings, as a configuration that files and flags of a command line overrule."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from glimpse_lightning.runtime import renames
from glimpse_lightning.runtime.errors import GlimpseError


@contextmanager
def checkpoint_config(args: Sequence[str]) -> Iterator[list[str]]:
    """Arguments that name a temporary config with the training settings of the checkpoint in ``args``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    name = parser.parse_known_args(list(args))[0].ckpt_path
    if name is None or name == "null":
        yield []
        return
    check_checkpoint(name)
    path = Path(name)
    model = _checkpoint_model(path) if path.is_file() else None
    if not model:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.yaml"
        file.write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
        yield ["--config", str(file)]


def check_checkpoint(name: str | None) -> None:
    """Raise GlimpseError where ``ckpt_path`` names no checkpoint: no file or folder, or a word of Lightning's.

    Lightning's words, such as ``best``, stand for checkpoints of callbacks that a run does not have.
    """
    if name is not None and (name in ("best", "last", "hpc", "registry") or not Path(name).exists()):
        raise GlimpseError(
            f"No checkpoint {name}; --ckpt_path expects a file that a run left in its `checkpoints/`. Without it, "
            "`fit` goes on where it was interrupted, and other commands take the last finished fit."
        )


def _checkpoint_model(path: Path) -> dict[str, Any] | None:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise GlimpseError(
            f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}); it may be truncated: use another "
            "one of the same run."
        ) from None
    return renames.current(checkpoint.get("hyper_parameters", {}).get("model"))
