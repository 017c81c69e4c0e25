"""Tables for papers: LaTeX's booktabs, with the best figures in bold."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Sequence

from glimpse_lightning.evaluation.intervals import Estimate
from glimpse_lightning.runtime.machine import commit
from glimpse_lightning.runtime.terminal import UNKNOWN, filled
from glimpse_lightning.runtime.version import __version__

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}",
}  # fmt: skip
"""Characters that LaTeX reads as commands, or prints as others in its oldest font encoding."""


def escaped(text: str) -> str:
    """A text as LaTeX prints it, in one line."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def origin(command: str, args: Sequence[str]) -> str:
    """A comment with the command and the framework's commit, or its version where it is installed as a package."""
    line = " ".join(shlex.join(["glimpse-lightning", command, *args]).split())
    return f"% {line} (glimpse-lightning {__version__}, commit {commit() or 'unknown'})"


def best_and_ties(values: Sequence[float | None], gain: Callable[[int, int], Estimate | None]) -> set[int]:
    """Places of the highest value, and of those whose paired difference to it has an interval that contains 0.

    Args:
        values: values; ``None`` takes no part.
        gain: paired difference of the value at the first place to the one at the second.
    """
    known = [place for place, value in enumerate(values) if value is not None]
    if not known:
        return set()
    best = max(known, key=lambda place: (values[place], -place))
    gains = {place: gain(place, best) for place in known if place != best}
    ties = {place for place, each in gains.items() if each is not None and each.low <= 0 <= each.high}
    return {best, *ties} | {place for place in known if values[place] == values[best]}


def tabular(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    bold: Collection[tuple[int, int]],
    comment: str,
    labels: int = 1,
) -> str:
    """A tabular environment, without columns of figures that no row has.

    Args:
        header: names of the columns.
        rows: cells of each row, as plain text.
        bold: row and column of the cells in bold.
        comment: first line.
        labels: number of first columns that hold names and not figures.
    """
    body = [[_cell(text, place >= labels, (number, place) in bold) for place, text in enumerate(row)]
            for number, row in enumerate(rows)]  # fmt: skip
    head, body = filled([escaped(name) for name in header], body, labels)
    return "\n".join([
        comment,
        r"% Bold: the highest, and those whose paired difference to it has a 95 % interval that contains 0.",
        r"% Needs \usepackage{booktabs}.",
        rf"\begin{{tabular}}{{{'l' * labels}{'r' * (len(head) - labels)}}}",
        r"\toprule",
        _line(head),
        r"\midrule",
        *map(_line, body),
        r"\bottomrule",
        r"\end{tabular}",
        "",
    ])  # fmt: skip


def _cell(text: str, is_figure: bool, is_bold: bool) -> str:
    if text == UNKNOWN:
        return text
    shown = re.sub(r"(?<![\w.])-(?=[\d.])", "$-$", escaped(text)) if is_figure else escaped(text)
    return rf"\textbf{{{shown}}}" if is_bold else shown


def _line(cells: Sequence[str]) -> str:
    line = " & ".join("--" if cell == UNKNOWN else cell for cell in cells) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line  # these are options of the ``\\`` before
