"""A FLOPs target gives the most tokens whose prefill costs no more, as the benchmark's theory counts it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import visual_tokens
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning import policies as p
from glimpse_lightning.bench.theory import Case
from glimpse_lightning.core.token_counts import StageTokens
from glimpse_lightning.policies.budget import tokens_for_flops

SIZES = [[(6, 8)], [(5, 5), (4, 6)], [], [(9, 9)]]


def share(facts: gl.ModelFacts, visual: int, text: int, stages: list[StageTokens]) -> float:
    """Prefill FLOPs by the benchmark's theory, without the head, as a share of the unpruned ones."""
    pruned, full = (Case(facts, 1, visual, text, some, 0, 4) for some in (stages, []))
    return sum(pruned.prefill_flops()) / sum(full.prefill_flops())


@pytest.mark.parametrize("target", [0.45, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("policy", [p.TopK, p.MaxMin, p.DPP])
def test_most_tokens_that_the_target_allows(policy: Any, layer: int, target: float) -> None:
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    stage = gl.PruneStage(layer, gl.scorers.Random(), policy(flops=target))
    inputs = backbone.example_inputs(SIZES)
    out = gl.PrunedVLM(backbone, gl.Pruner([stage])).prefill(**inputs)
    for row, total in enumerate((48, 49, 0, 81)):
        kept = int(out.keep[0][out.tokens.sample == row].sum())
        text = int(inputs["attention_mask"][row].sum()) - total
        if total == 0:
            continue
        assert share(backbone.facts, total, text, [StageTokens(layer, kept)]) <= target + 1e-9 or kept == 1
        assert kept == total or share(backbone.facts, total, text, [StageTokens(layer, kept + 1)]) > target
        assert kept < total or target == 1.0


def test_a_later_stage_pays_for_earlier_layers() -> None:
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    stages = [
        gl.PruneStage(0, gl.scorers.Random(), p.TopK(flops=0.8)),
        gl.PruneStage(1, gl.scorers.Random(), p.TopK(flops=0.6)),
    ]
    inputs = backbone.example_inputs([[(4, 4)]])
    first, second = (int(keep.sum()) for keep in gl.PrunedVLM(backbone, gl.Pruner(stages)).prefill(**inputs).keep)
    text = inputs["input_ids"].shape[1] - 16
    so_far = StageTokens(0, first)
    assert 0 < second < first < 16
    assert share(backbone.facts, 16, text, [so_far]) <= 0.8
    assert share(backbone.facts, 16, text, [StageTokens(0, first + 1)]) > 0.8
    assert share(backbone.facts, 16, text, [so_far, StageTokens(1, second)]) <= 0.6
    assert share(backbone.facts, 16, text, [so_far, StageTokens(1, second + 1)]) > 0.6


def test_target_out_of_reach_keeps_the_floor() -> None:
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    stage = gl.PruneStage(2, gl.scorers.Random(), p.MaxMin(flops=0.1, min_tokens=2))
    out = gl.PrunedVLM(backbone, gl.Pruner([stage])).prefill(**backbone.example_inputs([[(4, 4)]]))
    assert int(out.keep[0].sum()) == 2


def test_items_share_what_their_sample_may_keep() -> None:
    ran = torch.tensor([[53, 53]])
    tokens = replace(visual_tokens([[(1, 4, 4), (1, 4, 8)]]), text_length=torch.tensor([5]), layer_tokens=ran)
    most = int(tokens_for_flops(0.6, tokens))
    group, budget = p.MaxMin(flops=0.6, per="item").budget(tokens)
    assert budget.tolist() == [most * 16 // 48, most * 32 // 48]
    assert len(group) == 48


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="either `count` or `flops`"):  # a ratio is none of its arguments
        p.TopK(3, flops=0.5)
    with pytest.raises(ValueError, match="`flops` to be a fraction"):
        p.TopK(flops=1.5)
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    stage = gl.PruneStage(3, gl.scorers.Random(), p.TopK(flops=0.5))
    with pytest.raises(gl.GlimpseError, match="before the last layer"):
        gl.PrunedVLM(backbone, gl.Pruner([stage])).prefill(**backbone.example_inputs([[(2, 2)]]))
