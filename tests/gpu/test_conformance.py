"""The conformance kit, and published methods, over every family on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import METHODS
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.testing import CHECKS, SIZES

REHEARSED = ("qwen2_5_vl", "gemma3", "llava_next")
"""Families that differ most: positions, masks, tiles. Rehearsals of the others take minutes, and are slow tests."""


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in REHEARSED else pytest.mark.slow) for name in FAMILIES]
)
def test_conformance(family: str, check: Any, device: str) -> None:
    check(gl.wrap_backbone(FAMILIES[family]().to("cuda")))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "idefics3"])
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
