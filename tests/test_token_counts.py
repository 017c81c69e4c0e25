from __future__ import annotations

import pytest
import tiny_models
import torch
from factories import FACTS
from torch.utils.flop_counter import FlopCounterMode

import glimpse_lightning as gl
from glimpse_lightning.core.token_counts import (
    StageTokens,
    cached_per_layer,
    count_tokens,
    flops_ratio,
    tokens_per_layer,
)


def test_a_layer_sees_what_earlier_stages_left() -> None:
    assert tokens_per_layer(100, [StageTokens(-1, 40), StageTokens(1, 10), StageTokens(9, 3)], 4) == [40, 40, 10, 10]
    assert tokens_per_layer(100, [], 2) == [100, 100]


def test_four_counts_of_a_hand_made_case() -> None:
    counts = count_tokens(64, 10, [StageTokens(1, 16)], FACTS)  # six layers: 0 and 1 on all tokens, four on 16
    assert (counts.entering, counts.kv) == (64, 16)
    assert counts.layer_mean == (2 * 64 + 4 * 16) / 6
    full, pruned = FACTS.layer_flops(74), FACTS.layer_flops(26)
    assert counts.flops == pytest.approx((2 * full + 4 * pruned) / (6 * full))
    assert count_tokens(64, 10, [], FACTS).flops == 1.0


def test_the_papers_ratio_is_met() -> None:
    """protocols.md: 19 of 28 layers on 5,000 visual and 74 text tokens, 2.6 % kept behind: 69.0 %."""
    facts = gl.ModelFacts(
        num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128, hidden_size=3584, intermediate_size=18944,
        rms_norm_eps=1e-6, vision_layers=32, vision_hidden_size=1280,
    )  # fmt: skip
    assert flops_ratio([5000] * 19 + [130] * 9, 5000, 74, facts) == pytest.approx(0.690, abs=5e-4)


def test_cache_of_each_layer() -> None:
    """A stage that keeps early KV leaves the cache so far alone; any other one leaves in it what it keeps itself."""
    keep, prune = [StageTokens(1, 40, "keep"), StageTokens(3, 10, "keep")], StageTokens(3, 10)
    assert cached_per_layer(100, keep, 6) == [100, 100, 40, 40, 10, 10]
    assert cached_per_layer(100, [keep[0], prune], 6) == [10] * 6
    assert cached_per_layer(100, [prune, StageTokens(4, 5, "keep")], 6) == [10, 10, 10, 10, 10, 5]
    assert cached_per_layer(100, [StageTokens(-1, 40, "keep")], 2) == [40, 40]
    assert cached_per_layer(100, [StageTokens(9, 3)], 2) == [3, 3]
    assert cached_per_layer(100, [], 2) == [100, 100]
    assert count_tokens(100, 10, keep, FACTS).kv == 50  # six layers


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_layer_flops_are_those_that_torch_counts(family: str) -> None:
    backbone = gl.wrap_backbone(tiny_models.FAMILIES[family]())
    backbone.model.set_attn_implementation("eager")
    prompt = backbone.embed(backbone.example_inputs([[(4, 4)]]))
    positions = backbone.position_embeddings(prompt.embeds, prompt.position_ids)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.run_layer(0, prompt.embeds, None, positions, None, None)
    assert counter.get_total_flops() == backbone.facts.layer_flops(prompt.embeds.shape[1])
