"""One file and one import add a component: the package is copied, six are added, and all that lists them finds them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.backbones.support import families

ROOT = Path(__file__).parents[1]


def page(name: str) -> str:
    """The code of a page in docs/."""
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0]


ADDED = {
    "scorers": """
from glimpse_lightning.scorers.base import Scorer

class AddedScorer(Scorer):
    '''Tokens further right first.'''

    def forward(self, tokens):
        return tokens.position[:, 2].float()
""",
    "policies": page("plug_in_a_policy"),
    "reducers": page("plug_in_a_reducer"),
    "metrics": """
from glimpse_lightning.metrics.text import AnswerMetric

class AddedMetric(AnswerMetric):
    '''Share of answers that are no longer than their first reference.'''

    def score(self, prediction, references):
        return float(len(prediction) <= len(references[0]))
""",
    "objectives": """
from glimpse_lightning.objectives.kl import KL

class AddedObjective(KL):
    '''KL by another name.'''
""",
    "backbones": """
from glimpse_lightning.backbones.qwen2_5_vl import Qwen25VLBackbone

class AddedBackbone(Qwen25VLBackbone):
    '''Another family.'''

    architectures = ("AddedForConditionalGeneration",)
""",
}
NAMES = {shelf: re.findall(r"^class (\w+)", text, re.MULTILINE)[0] for shelf, text in ADDED.items()}
ROLES = {
    "scorer": "scorers",
    "policy": "policies",
    "reducer": "reducers",
    "objective": "objectives",
    "metric": "metrics",
}
RECIPE = """
model:
  after_layer: 1
  scorer: AddedScorer
  policy: EvenRows
  reducer: MeanOfTheRest
  objective: AddedObjective
  metric: AddedMetric
data:
  train: {class_path: GlyphVQA, init_args: {split: train}}
"""
USE = """
import sys

import pytest

from glimpse_lightning.backbones.support import family_of
from glimpse_lightning.evaluation.chosen_metric import find_metric
from glimpse_lightning.cli import main

tests, *named = sys.argv[1:]
helps = [[f"--model.{name.partition('=')[0]}.help", name.partition("=")[2]] for name in named]
for arguments in [["--config", "recipe.yaml", "--print_config"], *helps]:
    try:
        assert main(["fit", *arguments]) == 0
    except SystemExit as end:
        assert end.code in (None, 0)
print(type(find_metric("AddedMetric")), family_of("AddedForConditionalGeneration"))
sys.exit(pytest.main(tests.split("\\n")))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package that has one more file and one more import, with its name in ``__all__``, per shelf."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "glimpse_lightning"
    shutil.copytree(ROOT / "glimpse_lightning", package, ignore=shutil.ignore_patterns("__pycache__"))
    for shelf, text in ADDED.items():
        (package / shelf / "added.py").write_text(text)
        with (package / shelf / "__init__.py").open("a") as file:
            file.write(f"from glimpse_lightning.{shelf}.added import {NAMES[shelf]}\n__all__ += ['{NAMES[shelf]}']\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def out(copy: Path) -> str:
    """What the copy says of itself, and pytest of its contract tests."""
    tests = ["-v", "-p", "no:cacheprovider", "-k", "AddedScorer or EvenRows or MeanOfTheRest", f"--rootdir={ROOT}"]
    tests += ["-c", str(ROOT / "setup.cfg"), str(ROOT / "tests" / "test_contracts.py")]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-c",
        USE,
        "\n".join(tests),
        *(f"{role}={NAMES[shelf]}" for role, shelf in ROLES.items()),
    ]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_recipes_help_and_lists_find_what_was_added(out: str) -> None:
    for shelf in ROLES.values():
        name = NAMES[shelf]
        assert re.search(rf"class_path: glimpse_lightning\.{shelf}\.(added\.)?{name}\n", out), shelf
        assert f".help=glimpse_lightning.{shelf}.{name}\n" in out
    assert "<class 'glimpse_lightning.metrics.added.AddedMetric'>" in out
    assert "<class 'glimpse_lightning.backbones.added.AddedBackbone'>" in out


def test_contract_tests_find_and_pass_what_was_added(out: str) -> None:
    for test in (
        "test_scorer_shapes[AddedScorer-several]",
        "test_policy[several-EvenRows]",
        "test_reducer[several-MeanOfTheRest]",
    ):
        assert f"{test} PASSED" in out


def test_every_family_has_a_tiny_model_that_goes_through_the_conformance_kit() -> None:
    inside = {family for family in families().values() if family.__module__.startswith("glimpse_lightning.")}
    assert {type(gl.wrap_backbone(build())) for build in FAMILIES.values()} == inside
