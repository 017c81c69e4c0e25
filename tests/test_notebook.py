"""The notebook runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

import ast
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from PIL.Image import Image

mpl.use("Agg")
NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_look.ipynb"


def sources() -> list[str]:
    """The code of each cell."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(source: str, space: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints, and the value of its last line where that is an expression."""
    tree, printed = ast.parse(source), StringIO()
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(printed):
        exec(compile(tree, NOTEBOOK.name, "exec"), space)
        value = None if last is None else eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), space)
    return printed.getvalue(), value


@pytest.fixture(scope="module")
def shown() -> list[tuple[str, Any]]:
    space: dict[str, Any] = {"__name__": "notebook"}
    return [run(source, space) for source in sources()]


def test_it_shows_pages_and_overlays(shown: list[tuple[str, Any]]) -> None:
    assert [type(value).__name__ for _, value in shown] == ["Image", "Image", "Image", "dict", "Figure"]
    page, kept, tight = (value for _, value in shown[:3])
    assert isinstance(page, Image) and page.size == kept.size == tight.size
    assert "kept 25.0%" in shown[1][0] and "kept 4.7%" in shown[2][0]


def test_its_curves_tell_methods_apart(shown: list[tuple[str, Any]]) -> None:
    curves: dict[str, list[float]] = shown[3][1]
    assert len(curves) == 4 and all(len(values) == 4 for values in curves.values())
    assert curves["full model"][0] > 0.9 > max(curves["Random, before the decoder"][:3])


def test_its_outputs_are_those_of_today(shown: list[tuple[str, Any]]) -> None:
    """What is printed, and that pictures are there; a processor's roundings may change pixels of a plot."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for cell, (printed, value) in zip(cells, shown, strict=True):
        outputs = cell["outputs"]
        said = "".join(line for output in outputs if output["output_type"] == "stream" for line in output["text"])
        assert said == printed
        pictures = [output for output in outputs if {"image/png", "image/jpeg"} & set(output.get("data", ()))]
        assert len(pictures) == (type(value).__name__ in ("Image", "Figure"))
