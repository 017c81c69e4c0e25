"""The conformance kit, and published methods, over every family on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import METHODS
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.testing import (
    CHECKS,
    SIZES,
    check_batch_independence,
    check_decoding_equals_recomputation,
    check_gradients,
)

REHEARSED = ("qwen2_5_vl", "gemma3", "llava_next")
"""Families that differ most: positions, masks, tiles. Rehearsals of the others take minutes, and are slow tests."""
OF_FAMILIES = (check_decoding_equals_recomputation, check_gradients)
"""Checks that between them run all code of a family; what the other checks add is the same for every family."""


def rehearsed(family: str, check: Any) -> bool:
    if family == REHEARSED[0]:
        return check is not check_batch_independence  # it calls what check_forward calls, four times as often
    return family in REHEARSED and check in OF_FAMILIES


RUNS = [
    pytest.param(family, check, marks=() if rehearsed(family, check) else pytest.mark.slow)
    for family in FAMILIES
    for check in CHECKS
]


@pytest.mark.parametrize(("family", "check"), RUNS, ids=lambda value: getattr(value, "__name__", value))
def test_conformance(family: str, check: Any, device: str) -> None:
    check(gl.wrap_backbone(FAMILIES[family]().to("cuda")))


def each_method_once() -> list[Any]:
    """Every method on every family; rehearsed once, on the families in turn."""
    families = ("qwen2_5_vl", "llava_next", "idefics3")
    return [
        pytest.param(family, method, marks=() if index % len(families) == place else pytest.mark.slow)
        for index, method in enumerate(METHODS)
        for place, family in enumerate(families)
    ]


@pytest.mark.parametrize(("family", "method"), each_method_once())
def test_methods(family: str, method: str, device: str) -> None:
    """What is kept and answered is what the CPU keeps and answers."""
    found = []
    for place in ("cpu", "cuda"):
        backbone = gl.wrap_backbone(FAMILIES[family]().to(place))
        model = gl.PrunedVLM(backbone, gl.Pruner(METHODS[method]()))
        out = model.prefill(**backbone.example_inputs(SIZES))
        found.append((out, model.generate(prefill=out, max_new_tokens=3, min_new_tokens=3)))
    (plain, ids), (mine, mine_ids) = found
    assert mine.logits.device.type == "cuda"
    for keep, other in zip(mine.keep, plain.keep, strict=True):
        assert torch.equal(keep.cpu(), other)
    torch.testing.assert_close(mine.logits.cpu(), plain.logits, atol=1e-3, rtol=1e-3)
    assert torch.equal(mine_ids.cpu(), ids)
