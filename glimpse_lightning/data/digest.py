"""Digest of the data of a run, by contents, because a path may hold other data later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from glimpse_lightning.data.some import Some

GENERATED = "the parameters that it is made from"
ROWS = "every row read; of image files path, size and time of change, of images in the table their bytes"


def digest(dataset: Any, size: int | None = None) -> dict[str, Any] | None:
    """A digest of the rows of a dataset, without decoding an image.

    Args:
        dataset: dataset with a method ``identity(index)`` that returns plain values which identify a row. An attribute
            ``identified_by``, which describes these values, goes into the result.
        size: number of rows, from the first one on; default: all rows.

    Returns:
        ``rows`` (number of rows), ``digest`` and ``of`` (description of the digested values); ``None`` for a dataset
        without ``identity``.
    """
    indices: Sequence[int] = range(len(dataset))
    if isinstance(dataset, Some):
        dataset, indices = dataset.dataset, dataset.indices
    if not hasattr(dataset, "identity"):
        return None
    indices = indices[:size]
    found = blake2b(digest_size=16)
    for index in indices:
        found.update(_row(dataset, index).encode() + b"\n")
    return {"rows": len(indices), "digest": found.hexdigest(), "of": getattr(dataset, "identified_by", ROWS)}


def _row(dataset: Any, index: int) -> str:
    try:
        return json.dumps(dataset.identity(index), sort_keys=True, default=_plain)
    except Exception:  # a broken row is handled by `on_error`, and must not lose a run's results at its end
        return "null"


def of_file(root: Path, path: Path | str) -> list[Any]:
    """Identity of a file: its path below ``root``, size in bytes and time of change in ns."""
    root = root.resolve()
    full = root / path
    name = str(full.relative_to(root)) if full.is_relative_to(root) else str(full)
    try:
        about = full.stat()
    except (OSError, ValueError):  # a row without its image is handled by `on_error`
        return [name, None]
    return [name, about.st_size, about.st_mtime_ns]


def _plain(value: Any) -> Any:
    """Substitute for a value of a type that JSON lacks."""
    return blake2b(value, digest_size=16).hexdigest() if isinstance(value, bytes) else str(value)
