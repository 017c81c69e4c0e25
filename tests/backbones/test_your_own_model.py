"""The page "Your own model in one file" does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from glimpse_lightning.backbones import support

PAGE = Path(__file__).parents[2] / "docs" / "your_own_model.md"


def test_the_page_runs_and_its_adapter_passes_the_kit():
    adapter, proof = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = [line for line in adapter.splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert f"{len(code)} lines of code" in PAGE.read_text()
    assert f"({len(adapter.splitlines())} with" in PAGE.read_text()
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "mistral3"}
    exec(adapter, names)
    exec(proof, names)
    assert "Mistral3Backbone" in [family.__name__ for family in support.families().values()]
