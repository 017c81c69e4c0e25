from __future__ import annotations

import pytest
import tiny_models
import torch
from factories import FACTS
from torch.utils.flop_counter import FlopCounterMode

import glimpse_lightning as gl
from glimpse_lightning.token_counts import count_tokens, flops_ratio, tokens_per_layer


def test_a_layer_sees_what_earlier_stages_left() -> None:
    assert tokens_per_layer(100, [(-1, 40), (1, 10), (9, 3)], 4) == [40, 40, 10, 10]
    assert tokens_per_layer(100, [], 2) == [100, 100]


def test_four_counts_of_a_hand_made_case() -> None:
    counts = count_tokens(64, 10, [(1, 16)], FACTS)  # six layers: 0 and 1 on all tokens, four on 16
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


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_layer_flops_are_those_that_torch_counts(family: str) -> None:
    backbone = gl.wrap_backbone(tiny_models.FAMILIES[family]())
    backbone.model.set_attn_implementation("eager")
    prompt = backbone.embed(backbone.example_inputs([[(4, 4)]]))
    positions = backbone.position_embeddings(prompt.embeds, prompt.position_ids)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.run_layer(0, prompt.embeds, None, positions, None, None)
    assert counter.get_total_flops() == backbone.facts.layer_flops(prompt.embeds.shape[1])
