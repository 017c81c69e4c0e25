"""Output on the terminal: printing may fail without an error, and texts are shown without markup."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

UNKNOWN = "-"
"""The cell of a figure that is not defined."""
PIPED_WIDTH = 130
"""Width of tables in characters if the output is no terminal."""


class Forgiving:
    """A stream on which writing never raises, not even for a closed pipe or a character outside its encoding.

    The results of a command are in its files, so a failed write to the terminal must not end it.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """The number of characters of ``text``, written or not."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):  # a closed pipe, a terminal that has gone, a full disk; a closed stream
            self._give_up()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for each in lines:
            self.write(each)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Discard further output. Otherwise the interpreter fails when it flushes its buffers at the end."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def forgiving() -> Iterator[None]:
    """Context in which printing cannot fail."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (None if stream is None else Forgiving(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def show(*things: RenderableType, console: Console | None = None) -> None:
    """Print tables and texts; markup in texts is not interpreted."""
    width = None if sys.stdout is not None and sys.stdout.isatty() else PIPED_WIDTH
    console = console or Console(width=width, markup=False, emoji=False, highlight=False)
    for thing in things:
        console.print(Text(thing) if isinstance(thing, str) else thing)


def plain(text: str) -> Text:
    """A table cell with a text of the user, in which brackets are no markup."""
    return Text(text)


def counted(number: int, thing: str) -> str:
    """A number with its noun: ``1 question``, ``2 questions``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def filled(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> tuple[list[str], list[list[str]]]:
    """A table without the columns of figures that no row has.

    Args:
        header: names of the columns.
        rows: cells of each row, ``UNKNOWN`` for a figure that is not defined.
        labels: number of first columns, which stay.
    """
    kept = [
        place for place in range(len(header)) if place < labels or any(row[place] != UNKNOWN for row in rows)
    ]  # fmt: skip
    return [header[place] for place in kept], [[row[place] for place in kept] for row in rows]


def figures_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], wraps: bool = False) -> Table:
    """A table for :func:`show`, without columns of figures that no line has. The first column names the lines.

    Args:
        title: text above the table.
        header: names of the columns.
        lines: cells of each line.
        wraps: whether cells that are too wide go on in another line; by default they are cut off.
    """
    (first, *columns), lines = filled(header, lines)
    table = Table(title=title)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for name, *cells in lines:
        table.add_row(plain(name), *cells)
    return table
