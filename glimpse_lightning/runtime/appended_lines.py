"""JSON lines that the ranks of a run append as they go, so that a killed run loses one batch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glimpse_lightning.runtime.errors import GlimpseError


class AppendedLines:
    """Files ``<folder>/<name>.<rank>.jsonl``: each rank writes its own and reads all.

    Args:
        folder: folder of the files.
        name: common part of the files' names; it may contain dots.
        rank: number of this process.
    """

    def __init__(self, folder: Path, name: str, rank: int = 0) -> None:
        self.folder, self.name, self.rank = folder, name, rank
        self._whole = False

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append ``rows`` and flush them to the operating system."""
        if not rows:
            return
        path = self.folder / f"{self.name}.{self.rank}.jsonl"
        if not self._whole:
            self.folder.mkdir(parents=True, exist_ok=True)
            _drop_partial_line(path)
            self._whole = True
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    @property
    def paths(self) -> list[Path]:
        """The files of all ranks that have written any, in the order of ranks."""
        ranks = {}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = re.fullmatch(rf"{re.escape(self.name)}\.(\d+)\.jsonl", path.name)
            if match:
                ranks[int(match[1])] = path
        return [path for _, path in sorted(ranks.items())]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all ranks. An unfinished last line, left by a killed process, is skipped.

        Raises:
            GlimpseError: if a file holds anything but JSON objects.
        """
        return _rows(self.paths)

    def of_all(self) -> Iterator[dict[str, Any]]:
        """The rows of every ``*.jsonl`` file in the folder, of this name or another; otherwise as :meth:`rows`."""
        return _rows(sorted(self.folder.glob("*.jsonl")))


def _rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        data = path.read_bytes()  # which may end in the middle of a character
        try:
            whole = data[: data.rfind(b"\n") + 1].decode("utf-8")
            yield from map(json.loads, filter(str.strip, whole.split("\n")))
        except ValueError as error:
            raise GlimpseError(f"{path}: expected a JSON object a line, but {error}; delete the file.") from None


def _drop_partial_line(path: Path) -> None:
    """Cut off an unfinished last line, left by a killed process."""
    if path.is_file():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            path.write_bytes(whole)
