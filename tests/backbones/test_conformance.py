"""Every check of the conformance kit over a tiny random model of each family, under each CPU attention kernel."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.testing import (
    CHECKS,
    check_backbone,
    check_decoding_equals_recomputation,
    check_plain_equals_hf,
)

# Every check of every family under sdpa. Under eager, which differs in masks and taps, every check of the first of the
# families whose decoders differ most (positions of three axes; windows, and images that see ahead; windows alone), of
# the others of these the comparison with plain recomputation, and of each family the one with Hugging Face. The rest
# are slow tests.
DIFFER = ("qwen2_5_vl", "gemma3", "llava_next")


def usual(family: str, check: Any) -> bool:
    """Whether a check under eager is no slow test."""
    compares = family in DIFFER and check is check_decoding_equals_recomputation
    return family == DIFFER[0] or compares or check is check_plain_equals_hf


RUNS = [(family, "sdpa", check) for family in FAMILIES for check in CHECKS]
RUNS += [
    pytest.param(family, "eager", check, marks=() if usual(family, check) else pytest.mark.slow)
    for family in FAMILIES
    for check in CHECKS
]


@pytest.mark.parametrize(("family", "attention", "check"), RUNS, ids=lambda value: getattr(value, "__name__", value))
def test_conformance(family, attention, check):
    check(gl.wrap_backbone(FAMILIES[family](attention)))


SLOW_TO_TRAIN = ("qwen2_5_vl", "idefics3")


@pytest.mark.parametrize("family", ["llava", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_TO_TRAIN)])
def test_training_mode_and_gradient_checkpointing(family):
    """A layer that checkpoints drops its cache; during our calls it does not, and afterwards it does again."""
    model = FAMILIES[family]().train()
    model.gradient_checkpointing_enable()
    before = {name: module.gradient_checkpointing for name, module in checkpointing(model)}
    assert any(before.values())
    check_backbone(model)
    assert before == {name: module.gradient_checkpointing for name, module in checkpointing(model)}


def checkpointing(model):
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "gradient_checkpointing")]


SLOW_HEADS = [("llava", 1), ("gemma3", 4), ("qwen3_vl", 4)]
HEADS = [("qwen2_5_vl", 1), ("llava", 4), *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW_HEADS)]


@pytest.mark.parametrize(("family", "heads"), HEADS)
def test_heads_that_share_keys(monkeypatch, family, heads):
    """One key head for all query heads, or one each; input and output embeddings tied; wrapped twice before."""
    monkeypatch.setitem(tiny_models.TEXT, "num_key_value_heads", heads)
    model = FAMILIES[family]()
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    gl.wrap_backbone(model)
    gl.wrap_backbone(model)
    check_backbone(model)
