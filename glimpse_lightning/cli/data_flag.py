"""The flags ``--data.test FILE`` and the like: a file of questions in the place of a dataset's class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glimpse_lightning.data.open_file import class_name
from glimpse_lightning.runtime.errors import GlimpseError

FLAG = re.compile(r"(--data\.(?:train|val|test|predict))(?:=(.+))?")


def files_as_datasets(args: Sequence[str]) -> list[str]:
    """``args`` in which a file of questions is the ``path`` of the dataset that reads it: JSONL, or Table."""
    out: list[str] = []
    flag = ""
    for arg in args:
        found = FLAG.fullmatch(arg)
        value = found[2] if found else arg if flag else None
        flag, before = (found[1], flag) if found else ("", flag)
        kind = class_name(value) if value else None
        if value is None or kind is None:
            out.append(arg)
            continue
        if not found:
            out.pop()  # the flag alone
        out += [f"{flag or before}={kind}", f"{flag or before}.path={Path(value)}"]
        flag = ""
    return out


def check_training_flags(args: Sequence[str]) -> None:
    """Raise where a command other than `fit` gets a flag about batches of training.

    Raises:
        GlimpseError: naming the flag that the command reads.
    """
    for arg in args[1:] if args[0] != "fit" else ():
        if re.match(r"--data\.(batch_size|group)(=|$)", arg):
            raise GlimpseError(
                f"Expected no {arg.partition('=')[0]} with `{args[0]}`, which trains nothing: `--data.eval_batch_size` "
                "is the number of questions in a batch."
            )


def without_answers(datasets: Any) -> None:
    """Let the datasets of a parsed configuration, which `predict` reads, have no answers; in place."""
    for name in ("predict", "test"):
        options = (datasets.get(name) or {}).get("init_args") or {}
        if "require_answers" in options:
            options["require_answers"] = False
