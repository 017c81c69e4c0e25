"""Paths and text files of users: ``~`` is expanded and text files are read here only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glimpse_lightning.runtime.errors import GlimpseError


def read_text(path: Path) -> str:
    """The contents of a UTF-8 text file, without the byte order mark that Windows tools put in front.

    Raises:
        OSError, UnicodeDecodeError: if the file cannot be read.
    """
    return path.read_text(encoding="utf-8-sig")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        GlimpseError: where the file is missing or broken.
    """
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        raise GlimpseError(f"Expected {path} to exist and be readable, but got: {error.strerror}.") from error
    except ValueError as error:
        raise GlimpseError(f"Expected {path} to be JSON, but it is broken: {error}. Copy it again.") from error
    if not isinstance(content, dict):
        raise GlimpseError(f"Expected {path} to hold a JSON object, but got a {type(content).__name__}.")
    return content


def expanded(value: Any) -> Any:
    """A setting with every path in it that begins with ``~/`` expanded, also inside mappings and lists.

    Values under the keys ``TEXTS`` are no paths and stay unchanged.
    """
    if isinstance(value, str):
        return str(Path(value).expanduser()) if value.startswith("~/") or value == "~" else value
    if isinstance(value, dict):
        return {key: each if key in TEXTS else expanded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [expanded(each) for each in value]
    return value


TEXTS = ("question", "prompt", "template", "suffix")
"""Keys of settings that hold texts."""


def expanded_flags(args: Sequence[str]) -> list[str]:
    """A command line with ``--flag=~/x`` and quoted ``~/x`` expanded, which shells leave unchanged."""
    out: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        text = flag if equals else (out[-1] if out else "")
        if text.removeprefix("--") in TEXTS:
            out.append(arg)
        elif equals and flag.startswith("-") and value.startswith("~/"):
            out.append(f"{flag}={expanded(value)}")
        else:
            out.append(expanded(arg))
    return out
