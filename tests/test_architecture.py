"""Which files of the package may know which: no circle, and no import upwards between the rooms below."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import glimpse_lightning

PACKAGE = Path(glimpse_lightning.__file__).parent
CALLBACKS = Path(glimpse_lightning.callbacks.__file__).parent
"""A room of the package whose folder lies at the top of the repository."""
ROOMS = (
    "runtime",
    "core",
    "data",
    "scorers",
    "policies",
    "reducers",
    "metrics",
    "rewards",
    "pruner",
    "engine",
    "backbones",
    "model",
    "latency",
    "objectives",
    "evaluation",
    "pretraining",
    "training",
    "callbacks",
    "cli",
    "goldens",
    "ablation",
    "bench",
    "reproduction",
    "serving",
    "demo",
    "integrations",
)
"""From the ground up."""
LOOSE = {
    "__init__": "public names, found when first asked for",
    "__main__": "the command line",
    "testing": "the conformance kit",
    "visual_tokens": "public face of core.visual_tokens, which plug-ins import",
}
"""Files at the package's top."""


def modules() -> dict[str, Path]:
    """Files by module name; the package's own file, which names all others lazily, is left out."""
    names = {
        ".".join(("glimpse_lightning", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in PACKAGE.rglob("*.py")
        if "callbacks" not in path.relative_to(PACKAGE).parts
    }
    names |= {f"glimpse_lightning.callbacks.{path.stem}": path for path in CALLBACKS.glob("*.py")}
    found = {name.removesuffix(".__init__"): path for name, path in names.items()}
    del found["glimpse_lightning"]
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports anywhere: in functions and for type checkers, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {part if part in known else node.module for part in parts}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found & known.keys()


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def test_every_file_stands_in_a_room() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(LOOSE)
    assert {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))} <= {*ROOMS, "recipes"}


def test_no_files_import_each_other() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_no_room_knows_one_above_it() -> None:
    place = {room: number for number, room in enumerate(ROOMS)}
    upwards = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if place.get(name.split(".")[1], -1) < place.get(other.split(".")[1], -1) and name.split(".")[1] in place
    ]
    assert not upwards


def test_no_name_is_private_and_used_elsewhere() -> None:
    used = [
        f"{name}: {node.module}.{alias.name}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glimpse_lightning")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not used


HELD = ("model", "module", "pl_module", "data", "datamodule", "trainer", "writer")
"""Names of objects that a Trainer is given."""
RUNNERS = ("cli", "evaluation", "ablation", "integrations", "callbacks")
"""Files and rooms that make such objects, and hand over what these need as arguments."""


def test_no_module_is_changed_from_outside() -> None:
    written = [
        f"{path.name}:{node.lineno} writes {ast.unparse(target)}"
        for path in (path for name, path in modules().items() if name.split(".")[1] in RUNNERS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign))
        for targets in (node.targets if isinstance(node, ast.Assign) else [node.target],)
        for whole in targets
        for target in (whole.elts if isinstance(whole, ast.Tuple) else [whole])
        if isinstance(target, ast.Attribute) and target.attr != "trainer" and _held(target.value)
    ]
    assert not written


def _held(value: ast.expr) -> bool:
    """Whether an expression is one of ``HELD``, by name or as an attribute of ``self``."""
    own = isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == "self"
    return (isinstance(value, ast.Name) and value.id in HELD) or (own and value.attr in HELD)  # type: ignore[union-attr]
