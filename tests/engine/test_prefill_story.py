"""A prefill can be read as one story: the steps that its module tells, in that order, through few rooms."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

import glimpse_lightning as gl
from glimpse_lightning.engine import prefill

PACKAGE = Path(gl.__file__).parent
RECIPE = Path(__file__).parents[2] / "recipes" / "vip_kl.yaml"
ROOMS = 8
"""Rooms that a prefill passes."""
RETURNS = 20
"""How often it comes back to a room that it has left."""


def recipe_model() -> tuple[gl.PrunedVLM, dict[str, Any]]:
    """glimpse-tiny under VIP as the recipe has it, untrained, and two questions."""
    settings = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["model"]
    assert (settings["backbone"], settings["scorer"]["class_path"], settings["policy"]) == (
        "glimpse-tiny", "VIP", "Threshold",
    )  # fmt: skip
    backbone = gl.load_backbone("glimpse-tiny")
    scorer = gl.scorers.VIP(**settings["scorer"]["init_args"])
    stage = gl.PruneStage(settings["after_layer"], scorer, gl.policies.Threshold())
    batch = backbone.collate([gl.GlyphVQA("val", size=2)[index] for index in range(2)])
    return gl.PrunedVLM(backbone, gl.Pruner([stage])), {**batch.inputs, "questions": batch.questions}


def first_calls() -> list[tuple[str, str]]:
    """File and qualified name of every function of the package that a prefill calls, by its first call."""
    model, inputs = recipe_model()
    calls: dict[tuple[str, str], None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            calls.setdefault((path.relative_to(PACKAGE).as_posix(), frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        model.prefill(**inputs)
    finally:
        sys.setprofile(None)
    return list(calls)


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def test_rooms_of_a_prefill() -> None:
    """Read function by function, each at its first call: how many rooms that passes, and how often it comes back."""
    passed = [name for name, _ in groupby(first_calls(), lambda call: room(call[0]))]
    passed = [name for name, _ in groupby(passed)]
    assert set(passed) == {"model", "backbones", "engine", "core", "pruner", "scorers", "policies", "reducers"}
    assert (len(set(passed)), len(passed) - len(set(passed))) == (ROOMS, RETURNS)


def test_the_story_is_told_in_order() -> None:
    told = re.findall(r"``(?:\w+\.)?(\w+)``", (prefill.__doc__ or "").split("\n1. ")[1].split("Suffixes")[0])
    called = [name.split(".")[-1] for _, name in first_calls()]
    steps = [name for name in dict.fromkeys(told) if name != "PrefillRequest"]  # a class, made without a call of ours
    assert len(steps) >= 14
    assert not set(steps) - set(called)
    assert sorted(steps, key=called.index) == steps


def test_the_code_is_in_the_order_of_the_story() -> None:
    """Functions of the prefill's own file are defined in the order in which a prefill first calls them."""
    own = [name for file, name in first_calls() if file == "engine/prefill.py" and "." not in name]
    lines = [getattr(prefill, name).__code__.co_firstlineno for name in own]
    assert len(own) >= 4 and lines == sorted(lines)
