"""What a checkpoint was trained with, as a configuration below the files and flags of a command line."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from glimpse_lightning.errors import GlimpseError


@contextmanager
def checkpoint_config(args: Sequence[str]) -> Iterator[list[str]]:
    """Arguments that name a temporary config with what the checkpoint in ``args`` was trained with."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    name = parser.parse_known_args(list(args))[0].ckpt_path
    if name is None or name in ("null", "best", "last", "hpc"):
        yield []
        return
    path = Path(name)
    if not path.exists():
        raise GlimpseError(f"No checkpoint {name}; --ckpt_path expects a file that a run left in its `checkpoints/`.")
    model = _checkpoint_model(path) if path.is_file() else None
    if not model:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.yaml"
        file.write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
        yield ["--config", str(file)]


def _checkpoint_model(path: Path) -> dict[str, Any] | None:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise GlimpseError(
            f"{path} cannot be read as a checkpoint ({str(error).splitlines()[0]}); it may be truncated: use another "
            "one of the same run."
        ) from None
    return checkpoint.get("hyper_parameters", {}).get("model")
