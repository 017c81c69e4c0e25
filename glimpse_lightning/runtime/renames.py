"""Module paths of earlier versions, for code that imports from them and files that name classes by them.

Old paths work until version 0.4, with a ``DeprecationWarning``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "glimpse_lightning."
UNTIL = "version 0.4"
"""The version that no longer accepts old names; every warning about one says so."""
MOVED = {
    "adapters": "backbones.lora",
    "annotations": "training.annotations",
    "answers": "evaluation.answers",
    "appended_lines": "runtime.appended_lines",
    "benchmark": "bench",
    "benchmark.machine": "runtime.machine",
    "brief_help": "cli.brief_help",
    "checkpoint_config": "cli.checkpoint_config",
    "checkpoints": "model.storage",
    "chosen_metric": "evaluation.chosen_metric",
    "data.arrow": "data.tables.arrow",
    "data.benchmarks": "data.tables.benchmarks",
    "data.columns": "data.tables.columns",
    "data.glyph_draw": "data.glyph_vqa.draw",
    "data.glyph_layout": "data.glyph_vqa.layout",
    "data.glyph_packing": "pretraining.packing",
    "data.glyph_words": "data.glyph_vqa.words",
    "data.hub": "data.tables.hub",
    "data.rows": "data.tables.rows",
    "data.table": "data.tables.table",
    "dtypes": "runtime.dtypes",
    "engine.checkpointing": "engine.keep_caches",
    "engine.pruner": "pruner",
    "engine.recompute": "engine.activation_checkpointing",
    "engine.training": "engine.distillation",
    "errors": "runtime.errors",
    "evaluation_module": "evaluation.module",
    "evidence": "data.evidence",
    "export": "cli.export",
    "gathering": "runtime.gathering",
    "identity": "cli.identity",
    "intervals": "evaluation.intervals",
    "keys": "runtime.keys",
    "layers": "core.layers",
    "lightning_cli": "cli.trainer_runs",
    "lmms_eval_bridge": "integrations.lmms_eval",
    "model.upstream": "pruner.upstream",
    "model.upstream_export": "pruner.upstream_export",
    "module": "training.module",
    "objectives.pretrain": "pretraining.module",
    "optimization": "training.optimization",
    "packaged_recipes": "cli.packaged_recipes",
    "parser_errors": "cli.parser_errors",
    "part_help": "cli.part_help",
    "paths": "runtime.paths",
    "precision": "cli.precision",
    "predictions": "evaluation.predictions",
    "pruner_flag": "cli.pruner_flag",
    "quiet": "runtime.quiet",
    "ranks": "runtime.ranks",
    "recipe_check": "cli.recipe_check",
    "recipe_files": "cli.recipe_files",
    "resolution": "model.resolution",
    "results": "evaluation.records",
    "run_folder": "runtime.run_folder",
    "scoring": "cli.score",
    "seeds": "runtime.seeds",
    "segments": "core.segments",
    "sharding": "model.sharding",
    "sharing": "evaluation.shared_questions",
    "source": "runtime.source",
    "strategies": "training.strategies",
    "suite": "evaluation.suite",
    "suite_report": "evaluation.suite_report",
    "tasks": "evaluation.tasks",
    "terminal": "runtime.terminal",
    "token_counts": "core.token_counts",
    "token_places": "core.token_places",
    "trainer_settings": "cli.trainer_settings",
    "upstream": "pruner.upstream",
    "upstream_export": "pruner.upstream_export",
    "version": "runtime.version",
    "vlm_module": "evaluation.vlm_module",
    "whole_files": "runtime.whole_files",
}
"""Modules and packages by their old names, below the package."""


BLOCKS = {
    "VIP": (
        "upstream",
        ("window", "deep_supervision", "glimpse_length", "glimpse_layers", "glimpse_norm", "masks", "activation"),
    ),
}
"""Arguments that a class now takes as one block: the block's name and theirs, by the class's name."""

REMOVED: dict[str, dict[str, Any]] = {"HiPrune": {"wrap": True}, "LogisticRatio": {"information": None}}
"""Arguments that a class no longer has, with the value by which it works as if they had been given, by its name."""


def current(value: Any) -> Any:
    """A nested configuration as this version writes it: new places of classes, blocks of arguments, no removed ones."""
    if isinstance(value, dict):
        return {key: current(item) for key, item in _with_arguments(value).items()}
    if isinstance(value, list):
        return [current(item) for item in value]
    return _renamed(value) or value if isinstance(value, str) and value.startswith(PACKAGE) else value


def _with_arguments(value: dict[Any, Any]) -> dict[Any, Any]:
    """A component's ``class_path`` and ``init_args`` with the arguments it takes now; anything else as it is."""
    path, args = value.get("class_path"), value.get("init_args")
    if not isinstance(path, str) or not isinstance(args, dict) or not (path.startswith(PACKAGE) or "." not in path):
        return value
    name = path.rpartition(".")[2]
    gone = REMOVED.get(name, {}).items()
    return value | {"init_args": _in_block(name, {key: item for key, item in args.items() if (key, item) not in gone})}


def _in_block(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the class ``name`` with those in its block that belong there."""
    block, names = BLOCKS.get(name, ("", ()))
    flat = {key: args[key] for key in names if key in args}
    rest = {key: item for key, item in args.items() if key not in flat}
    return rest | {block: flat | (args.get(block) or {})} if flat else args


def _renamed(name: str) -> str | None:
    """The new path of a dotted name in the package; ``None`` if it has not moved."""
    parts = name.removeprefix(PACKAGE).split(".")
    for count in range(len(parts), 0, -1):
        if new := MOVED.get(".".join(parts[:count])):
            return PACKAGE + ".".join([new, *parts[count:]])
    return None


class OldPlaces(MetaPathFinder, Loader):
    """Import hook that finds moved modules at their old paths."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Spec of a module that forwards to the one at the new path."""
        moved = fullname.startswith(PACKAGE) and _renamed(fullname)
        return ModuleSpec(fullname, self, is_package=True) if moved else None

    def exec_module(self, module: ModuleType) -> None:
        """Forward every attribute of ``module`` to the new module."""
        new = _renamed(module.__name__)
        assert new is not None
        home = import_module(new)
        message = f"{module.__name__} is now {new}; the old path works until {UNTIL}."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        module.__dict__["__getattr__"] = partial(getattr, home)


def install() -> None:
    """Add :class:`OldPlaces` as the last import hook."""
    if not any(isinstance(finder, OldPlaces) for finder in sys.meta_path):
        sys.meta_path.append(OldPlaces())
