"""Changing a recipe, as a tree, by dotted keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from glimpse_lightning.runtime.errors import GlimpseError

Tree = dict[str, Any]
CLASS, ARGUMENTS = "class_path", "init_args"


def changed(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Tree:
    """A copy of ``tree`` with each dotted key set to its value.

    As on the command line, ``init_args`` may be left out on the way: ``model.scorer.dropout`` is
    ``model.scorer.init_args.dropout``. Numbers index lists: ``model.stages.0.after_layer``.

    Raises:
        GlimpseError: where a key leads through a list by anything but one of its indices, or through a plain value.
    """
    out = copy.deepcopy(dict(tree))
    for key, value in overrides.items():
        _set(out, key.split("."), copy.deepcopy(value), key)
    return out


def get(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of mappings; ``None`` where there is none."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _set(node: Any, parts: list[str], value: Any, key: str) -> None:
    part, rest = parts[0], parts[1:]
    if isinstance(node, dict) and CLASS in node and part not in (CLASS, ARGUMENTS):
        node = node.setdefault(ARGUMENTS, {})
    index: Any = part
    if isinstance(node, list):
        if not (part.isdigit() and int(part) < len(node)):
            raise GlimpseError(f"`{key}`: expected an index below {len(node)} into the list, but got {part!r}.")
        index = int(part)
    elif not isinstance(node, dict):
        raise GlimpseError(f"`{key}`: expected a mapping above {part!r}, but the recipe has {node!r} there.")
    if not rest:
        node[index] = value
        return
    child = node[index] if isinstance(node, list) else node.get(index)
    if child is None:
        child = {}
    elif isinstance(child, str) and child.isidentifier():  # a class by its short name
        child = {CLASS: child}
    node[index] = child
    _set(child, rest, value, key)
