"""docs/methods.md names every published method, and calls equal only those that a test compares with stored tensors."""

from __future__ import annotations

import re
from pathlib import Path

from golden_numbers import GOLDEN

from glimpse_lightning.cli.packaged_recipes import recipes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "methods.md").read_text()
ROWS = [[cell.strip() for cell in row.split("|")[1:-1]] for row in PAGE.splitlines() if row.startswith("| [")]
"""Rows of the overview: method and recipe, layer, question, training, state."""


def test_every_published_method_is_there_and_every_equal_one_is_compared() -> None:
    named = {name for method, *_ in ROWS for name in re.findall(r"`(\w+)`", method)}
    for name, path in recipes().items():
        paper = re.search(r"^# Paper: +(.+)$", path.read_text(), re.MULTILINE)
        if name.startswith("methods/") and paper and paper[1] != "none":
            assert name.removeprefix("methods/") in named, f"{name} is not in the overview of docs/methods.md"
            assert all(number in PAGE for number in re.findall(r"\d{4}\.\d{5}", paper[1])), f"{name}: {paper[1]}"
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    readers = "\n".join(text for text in tests if re.search("^from method_goldens import", text, re.MULTILINE))
    equal = {method: re.findall(r"`(\w+)`", state) for method, *_, state in ROWS if state.startswith("equal")}
    assert len(equal) > 10
    for method, files in equal.items():
        assert files, f"{method} is called equal, but no stored tensors are named"
        for file in files:
            assert (GOLDEN / "methods" / f"{file}.safetensors").is_file(), f"{method}: no file {file}"
            assert f'"{file}"' in readers, f"{method}: no test reads {file}"
