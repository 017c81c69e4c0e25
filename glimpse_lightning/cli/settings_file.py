"""YAML files whose keys are the fields of a dataclass: ablations and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.runtime.paths import expanded, read_text


def read_settings(
    path: Path, kind: type, needed: Collection[str], described: str, other_names: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Values by key, for the fields of the dataclass ``kind``.

    Args:
        path: the file.
        kind: class whose fields are the keys.
        needed: keys that have to be there.
        described: these keys with their meaning, for the error.
        other_names: further names of keys, and the names of these in ``kind``; by default there are none.

    Raises:
        GlimpseError: where it is no YAML mapping, has an unknown key, or lacks a needed one.
    """
    try:
        data = expanded(yaml.safe_load(read_text(path)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GlimpseError(f"{path}: not valid YAML: {error}") from None
    if isinstance(data, dict):
        data = {key if other_names.get(key, key) in data else other_names.get(key, key): data[key] for key in data}
    if not isinstance(data, dict) or not set(needed) <= set(data):
        raise GlimpseError(f"{path}: expected a YAML mapping with at least {described}.")
    known = [entry.name for entry in fields(kind)]
    for key in data:
        if key not in known:
            raise GlimpseError(f"{path}: there is no key {key!r}.{nearest(str(key), known)} Keys: {', '.join(known)}.")
    return data


def expecting(settings: Any, where: str) -> Callable[[str, str, bool], None]:
    """A function of a field's name, a description of good values and whether the value is good; raises if not.

    Args:
        settings: holds the values.
        where: origin of the values, for the error.
    """

    def expect(key: str, what: str, good: bool) -> None:
        if not good:
            raise GlimpseError(f"{where}: expected `{key}` to be {what}, but got {getattr(settings, key)!r}.")

    return expect
