"""From axes to cells: each cell is a whole recipe of its own."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from glimpse_lightning.ablation.overrides import Tree, changed, get
from glimpse_lightning.ablation.settings import MODES, Settings
from glimpse_lightning.cli.packaged_recipes import find_recipe, recipes
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.runtime.paths import read_text

PRUNING = (
    "after_layer", "scorer", "policy", "reducer", "early_kv", "positions", "stages", "pruner", "pruner_source",
    "resolution", "allow_empty",
)  # fmt: skip
"""Keys of ``model`` that define the pruner, which a method replaces as a whole."""

SHORT = {"layer": "model.after_layer", "backbone": "model.backbone", "seed": "seed_everything"}
"""Axes that stand for one dotted key."""

RETENTION = "vars.retention"
METHOD_KEYS = ("name", "recipe", "set", "at", "pruner", "mode", "reference", "floor")
BARE = {  # cells are compared with one another, so none measures baselines of its own
    "model.baselines": [],
    "model.fit_baselines": [],
    "trainer.enable_progress_bar": False,
}


@dataclass(frozen=True)
class Cell:
    """One run of an ablation.

    Attributes:
        name: name of its folder.
        mode: ``fit`` or ``test``.
        labels: its value on each axis, as tables show it; axes that its method does not have are absent.
        recipe: the whole recipe.
        at: retention -> overrides, for methods whose budget is not one number.
        reference: whether it is a reference and not a method; Pareto fronts leave it out.
        floor: name of the method whose accuracy is worth nothing to it; ``None`` for no floor.
    """

    name: str
    mode: str
    labels: Mapping[str, Any]
    recipe: Tree
    at: Mapping[float, Mapping[str, Any]]
    reference: bool = False
    floor: str | None = None

    def text(self) -> str:
        """The recipe as YAML."""
        return f"# Cell {self.name} of an ablation.\n" + yaml.safe_dump(
            self.recipe, sort_keys=False, allow_unicode=True
        )


def cells(settings: Settings) -> list[Cell]:
    """All cells of an ablation, in the order of its axes, the last one varying fastest.

    Raises:
        GlimpseError: where an axis or a method cannot be understood, or an axis changes nothing.
    """
    base = changed(read_recipe(settings.base), {**BARE, **settings.set})
    if settings.limit is not None:
        base = changed(base, {"data.test_size": settings.limit, "data.fit_test_size": settings.limit})
    found = [Cell("", settings.mode, {}, base, {})]
    axes = sorted(settings.axes.items(), key=lambda axis: axis[0] != "methods")  # first, as other axes change methods
    for axis, values in axes:
        grown = [new for cell in found for new in _along(cell, axis, values, settings)]
        if not any(axis in cell.labels for cell in grown):
            raise GlimpseError(
                f"Axis {axis!r} changes no cell: expected a recipe with {_needs(axis)}, but none has it. Leave the "
                "axis out, or choose another base or methods."
            )
        found = grown
    names = {str(cell.labels.get("methods")) for cell in found}
    if lost := sorted({cell.floor for cell in found if cell.floor is not None} - names):
        raise GlimpseError(
            f"There is no method {lost[0]!r}, which is named as a `floor`.{nearest(lost[0], sorted(names))} "
            "Add it to `methods`, or leave the floor out."
        )
    if twice := sorted({cell.name for cell in found if sum(other.name == cell.name for other in found) > 1}):
        raise GlimpseError(f"Two cells are called {twice[0]!r}; give values or methods distinct names (`name:`).")
    return found


def _needs(axis: str) -> str:
    if axis == "retention":
        return "`${vars.retention}` where it says what prunes, or a method with `at:`"
    return f"`{SHORT.get(axis, axis)}`" if axis != "methods" else "a method that can run (a `pruner:` is missing?)"


def _along(cell: Cell, axis: str, values: list[Any], settings: Settings) -> Iterator[Cell]:
    """The cell at each value of an axis; the unchanged cell where the axis does not apply to it."""
    if axis == "methods":
        for value in values:
            yield from _with_method(cell, value, settings)
        return
    if not _applies(axis, cell):
        yield cell
        return
    for value in values:
        label, overrides = _named(axis, value)
        if axis == "retention" and not _uses_retention(cell):
            if value not in cell.at:
                raise GlimpseError(
                    f"Method {cell.labels.get('methods')!r} says `at:` which budgets it runs, and {value!r} is not "
                    f"among {', '.join(map(str, cell.at))}."
                )
            overrides = cell.at[value]
        short = axis.rsplit(".", 1)[-1]
        yield _grown(cell, axis, label, f"{short}_{label}", overrides)


def _applies(axis: str, cell: Cell) -> bool:
    if axis == "retention":
        return _uses_retention(cell) or bool(cell.at)
    return axis != "layer" or get(cell.recipe, SHORT["layer"]) is not None


def _uses_retention(cell: Cell) -> bool:
    model = cell.recipe.get("model") or {}
    keys = (*PRUNING, "objective") if cell.mode == "fit" else PRUNING
    return "${vars.retention}" in str([model.get(key) for key in keys])


def _named(axis: str, value: Any) -> tuple[Any, Mapping[str, Any]]:
    """A value's label and overrides; ``{name: ..., set: {...}}`` may stand for any value."""
    if isinstance(value, Mapping) and set(value) == {"name", "set"}:
        return value["name"], value["set"]
    key = RETENTION if axis == "retention" else SHORT.get(axis, axis)
    return value, {key: value}


def _grown(cell: Cell, axis: str, label: Any, part: str, overrides: Mapping[str, Any]) -> Cell:
    part = re.sub(r"(?<=_)-(?=[\d.])", "minus_", part)
    part = re.sub(r"([^\w.=+]|_)+", "_", part).strip("_.")
    name = f"{cell.name}-{part}" if cell.name else part
    plain = label if isinstance(label, (str, int, float, bool)) else str(label)
    return replace(cell, name=name, labels={**cell.labels, axis: plain}, recipe=changed(cell.recipe, overrides))


def _with_method(cell: Cell, value: Any, settings: Settings) -> Iterator[Cell]:
    method: Mapping[str, Any] = {"name": Path(value).stem, "recipe": value} if isinstance(value, str) else value
    if not isinstance(method, Mapping) or not isinstance(method.get("name"), str):
        raise GlimpseError(f"Expected a method to be a recipe, or a mapping with a `name`, but got {value!r}.")
    for key in method:
        if key not in METHOD_KEYS:
            raise GlimpseError(
                f"Method {method['name']!r}: there is no key {key!r}.{nearest(str(key), METHOD_KEYS)} Keys: "
                f"{', '.join(METHOD_KEYS)}."
            )
    mode = method.get("mode", cell.mode)
    if mode not in MODES:
        raise GlimpseError(f"Method {method['name']!r}: expected `mode` to be {' or '.join(MODES)}, but got {mode!r}.")
    tree = cell.recipe
    if method.get("recipe") is not None:
        tree = _pruned_as_in(tree, read_recipe(method["recipe"]))
    if method.get("pruner"):
        folder = settings.pruner_of(method["pruner"])
        if folder is None:
            return
        tree = changed(_pruned_as_in(tree, {}), {"model.pruner": folder})
    at, reference, floor = method.get("at") or {}, bool(method.get("reference")), method.get("floor", settings.floor)
    if not isinstance(floor, str | None):
        raise GlimpseError(
            f"Method {method['name']!r}: expected `floor` to be the name of a method, or null, but got {floor!r}."
        )
    cell = replace(cell, recipe=tree, mode=mode, at=at, reference=reference, floor=floor)
    yield _grown(cell, "methods", method["name"], method["name"], method.get("set") or {})


def _pruned_as_in(tree: Tree, method: Tree) -> Tree:
    """``tree`` with the pruner of ``method``, and the values that this refers to."""
    out = copy.deepcopy(tree)
    model, theirs = out.setdefault("model", {}), method.get("model") or {}
    for key in PRUNING:
        model.pop(key, None)
        if key in theirs:
            model[key] = copy.deepcopy(theirs[key])
    if method.get("vars"):
        out["vars"] = {**(out.get("vars") or {}), **method["vars"]}
    return out


def read_recipe(name: str) -> Tree:
    """A recipe as a tree: a file, the name of a packaged recipe, or that of one in ``recipes/methods``."""
    path = Path(name)
    if not path.is_file():
        short = f"methods/{name}"
        path = find_recipe(short if short in recipes() else name)
    data = yaml.safe_load(read_text(path))
    if not isinstance(data, dict):
        raise GlimpseError(f"{path}: expected a recipe, a YAML mapping (model: ..., data: ..., trainer: ...).")
    return data
