"""Every option that a recipe can set is set by a recipe or described in a page: others are options that nobody uses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.callbacks import Callback

import glimpse_lightning as gl
from glimpse_lightning.cli.part_help import PARTS
from glimpse_lightning.rewards.combined import NAMES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
MODULES = [gl.VLMModule, gl.EvaluationModule, gl.PruningModule, gl.SuiteModule, gl.SuiteData, gl.VQAData]
"""Classes of `model:` and `data:`, whose options recipes and pages name without them."""


SHELVES: list[Any] = [gl.callbacks, gl.metrics, gl.objectives, gl.policies, gl.reducers, gl.rewards, gl.scorers, gl]
KINDS = (*PARTS.values(), Callback, gl.rewards.Judge)


def components() -> list[Any]:
    """What a recipe names by class: parts of a pruner, objectives, metrics, datasets, callbacks and rewards."""
    named = {getattr(shelf, name) for shelf in SHELVES for name in shelf.__all__ if name != "__version__"}
    kinds = [each for each in named if inspect.isclass(each) and issubclass(each, KINDS)]
    rewards = [each for each in named if inspect.isfunction(each) and each.__module__.startswith(gl.rewards.__name__)]
    return sorted([*(kind for kind in kinds if not inspect.isabstract(kind)), *rewards], key=lambda each: each.__name__)


def options(kind: Any) -> list[str]:
    """Arguments that have a default, less the facts that a reward is given."""
    parameters = inspect.signature(kind).parameters.values()
    return [each.name for each in parameters if each.default is not each.empty and each.name not in NAMES]


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a nested configuration."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(item)


@cache
def recipes() -> list[dict[str, Any]]:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "recipes").rglob("*.yaml")]
    return [mapping for text in texts for mapping in mappings(yaml.safe_load(text))]


@cache
def described() -> list[set[str]]:
    """The words in code of each line of the pages; a fenced block is one line."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    blocks = re.findall(r"```.*?```", text, re.DOTALL)
    lines = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
    code = [*blocks, *(" ".join(re.findall(r"`([^`]+)`", line)) for line in lines)]
    return [set(re.findall(r"\w+", each)) for each in code]


def used(kind: Any, option: str) -> bool:
    name = kind.__name__
    if kind in MODULES:
        return any(option in mapping for mapping in recipes()) or any(option in words for words in described())
    set_there = [
        option in (mapping.get("init_args") or {}) for mapping in recipes() if mapping.get("class_path") == name
    ]
    return any(set_there) or any({name, option} <= words for words in described())


@pytest.mark.parametrize("kind", [*components(), *MODULES], ids=lambda kind: kind.__name__)
def test_every_option_is_used_or_described(kind: Any) -> None:
    assert [option for option in options(kind) if not used(kind, option)] == []


def test_components_of_every_shelf_are_looked_at() -> None:
    names = {kind.__name__ for kind in components()}
    assert {"VIP", "HiPrune", "PoolCells", "GRPO", "POPE", "JSONL", "RunCheckpoints", "Judge", "length"} <= names


def test_an_option_that_nobody_names_is_found() -> None:
    class Drop(gl.reducers.Drop):
        def __init__(self, unheard_of: int = 1) -> None:
            super().__init__()

    assert [option for option in options(Drop) if not used(Drop, option)] == ["unheard_of"]
