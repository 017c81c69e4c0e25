"""Public names: what ``gl`` lists, where it finds them, and what type checkers are told are one."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import glimpse_lightning as gl


def told() -> dict[str, str]:
    """By name, the module from which type checkers are told to import it."""
    tree = ast.parse(Path(gl.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def test_type_checkers_see_what_is_there() -> None:
    assert sorted([*told(), "__version__"]) == gl.__all__ == dir(gl)


@pytest.mark.parametrize("name", told())
def test_names_are_found_where_type_checkers_look(name: str) -> None:
    home = told()[name]
    found = getattr(gl, name)
    if isinstance(found, ModuleType):
        assert (home, found) == ("glimpse_lightning", import_module(f"glimpse_lightning.{name}"))
    else:
        assert found is getattr(import_module(home), name)
        assert getattr(found, "__doc__", None)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="'glimpse_lightning' has no attribute 'prune'"):
        gl.prune  # noqa: B018
