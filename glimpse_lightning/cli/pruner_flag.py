"""The flag ``--pruner`` together with a recipe that defines a pruner of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

KEYS = ("after_layer", "scorer", "policy", "reducer", "early_kv", "positions", "stages", "resolution")
"""Keys of a recipe's model that define its own pruner, or belong to it."""


def pruner_alone(args: Sequence[str], recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """``args`` in which a pruner that a flag names replaces the recipes' own, as flags overrule recipes.

    Keys that other flags set stay unchanged.

    Args:
        args: arguments of the command line.
        recipes: contents of its configuration files.
    """
    out = list(args)
    if not any(re.match(r"--model\.pruner(=|$)", arg) for arg in args):
        return out
    models = [recipe.get("model") or {} for recipe in recipes]
    set_there = {key for model in models for key in {**model, **(model.get("init_args") or {})}}
    for key in KEYS:
        if key in set_there and not any(re.match(rf"--model\.{key}(\.|=|$)", arg) for arg in args):
            out += [f"--model.{key}", "null"]
    if "pruner_source" in set_there and not any(arg.startswith("--model.pruner_source") for arg in args):
        out += ["--model.pruner_source.revision", "null"]  # it belongs to the recipe's pruner
    return out
