"""Every check of the conformance kit over a tiny random model of each family, under each CPU attention kernel."""

from __future__ import annotations

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

# Every check of every family under sdpa. Under eager, which differs in masks and taps, every check of the families
# whose decoders differ most (positions of three axes; windows, and images that see ahead; windows alone), and of each
# other family the comparisons with Hugging Face and with plain recomputation.
DIFFER = ("qwen2_5_vl", "gemma3", "llava_next")
COMPARE = (check_plain_equals_hf, check_decoding_equals_recomputation)
RUNS = [(family, "sdpa", check) for family in FAMILIES for check in CHECKS]
RUNS += [(family, "eager", check) for family in FAMILIES for check in (CHECKS if family in DIFFER else COMPARE)]


@pytest.mark.parametrize(("family", "attention", "check"), RUNS, ids=lambda value: getattr(value, "__name__", value))
def test_conformance(family, attention, check):
    check(gl.wrap_backbone(FAMILIES[family](attention)))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "idefics3"])
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


SLOW_HEADS = [("llava", 1), ("gemma3", 4)]
HEADS = [("qwen2_5_vl", 1), ("qwen3_vl", 4), *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW_HEADS)]


@pytest.mark.parametrize(("family", "heads"), HEADS)
def test_heads_that_share_keys(monkeypatch, family, heads):
    """One key head for all query heads, or one each; input and output embeddings tied; wrapped twice before."""
    monkeypatch.setitem(tiny_models.TEXT, "num_key_value_heads", heads)
    model = FAMILIES[family]()
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    gl.wrap_backbone(model)
    gl.wrap_backbone(model)
    check_backbone(model)
