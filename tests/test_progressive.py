"""Two stages that share one glimpse token: a coarse one early, a fine one later, trained together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from factories import FACTS, visual_tokens
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.bench.training import training_batch
from glimpse_lightning.core.token_counts import StageTokens, count_tokens
from glimpse_lightning.objectives import KL
from glimpse_lightning.objectives.flops_budget import flops_share
from glimpse_lightning.runtime.errors import GlimpseError


def vip(**kwargs: Any) -> gl.scorers.VIP:
    sizes = {"vision_layers": [1, 0], "attention_dim": 16, "condition_dim": 16, "heads": 2, "dropout": 0.0}
    return gl.scorers.VIP(attention_layers="all", **sizes, **kwargs)


def progressive(early: int = 0, late: int = 2) -> gl.Pruner:
    stages = [(early, vip()), (late, vip(shares_glimpse=True))]
    return gl.Pruner([gl.PruneStage(layer, scorer, gl.policies.Threshold()) for layer, scorer in stages])


def centred(pruner: gl.Pruner, batch: Any, model: gl.PrunedVLM) -> None:
    """Move the stages' output biases so that each stage drops about a half."""
    for stage, output in zip(pruner.stages, model.glimpse_forward(batch), strict=True):
        head: Any = stage.scorer.network.attn_out_projs[-1]  # type: ignore[union-attr]
        with torch.no_grad():
            head.bias -= output.scores.median() + 1e-3


@pytest.fixture(params=["qwen2_5_vl", "llava"])
def setting(request: pytest.FixtureRequest) -> tuple[gl.PrunedVLM, gl.Pruner, Any]:
    torch.manual_seed(0)
    backbone = gl.wrap_backbone(tiny_models.FAMILIES[request.param]().double())
    backbone.model.requires_grad_(False)
    pruner = progressive()
    model = gl.PrunedVLM(backbone, pruner)
    pruner.double()
    batch = training_batch(backbone, backbone.example_inputs([[(4, 4)], [(4, 4), (4, 4)]]), answer_tokens=3)
    centred(pruner, batch, model)
    return model, pruner, batch


def test_the_glimpse_is_one(setting: Any) -> None:
    model, pruner, batch = setting
    assert pruner.stages[0].scorer.glimpse is not None
    assert pruner.stages[1].scorer.glimpse is None
    calls: list[tuple[Any, ...]] = []
    glimpse = pruner.stages[0].scorer.glimpse
    hook = glimpse.register_forward_pre_hook(lambda _, args: calls.append(args))
    model.prefill(**batch.inputs)
    hook.remove()
    assert len(calls) == 1


def test_what_the_first_stage_drops_stays_dropped(setting: Any) -> None:
    model, _, batch = setting
    out = model.prefill(**batch.inputs)
    early, late = out.keep
    assert 0 < int(late.sum()) < int(early.sum()) < len(early)
    assert not (late & ~early).any()
    assert torch.equal(out.scores[1].isinf(), ~early)


def test_training_with_shut_gates_is_the_pruned_prefill(setting: Any) -> None:
    """Gates of exactly 0 and 1: scores of the later stage and first logits are those of the hard pruner."""
    model, _, batch = setting
    hard = model.prefill(**batch.inputs)
    out = model.distill(batch, lambda scores, _: torch.where(scores > 0, 0.0, -1e4).to(scores.dtype))
    early = hard.keep[0]
    torch.testing.assert_close(out.stages[0].scores, hard.scores[0])
    torch.testing.assert_close(out.stages[1].scores[early], hard.scores[1][early])
    torch.testing.assert_close(out.student_logits[:, 0], hard.logits)


def test_one_kl_step_trains_both_stages_and_the_glimpse(setting: Any) -> None:
    model, pruner, batch = setting
    objective = KL(flops=0.7)
    objective.progress = 1.0
    result = objective.step(model, batch)
    result.loss.backward()
    assert {"flops", "hard_flops", "stage0_retention", "stage1_retention"} <= set(result.logs)
    assert result.logs["stage1_retention"] <= result.logs["stage0_retention"]
    still = {name for name, p in pruner.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert not still


def test_saved_and_loaded(setting: Any, tmp_path: Path) -> None:
    model, pruner, batch = setting
    loaded = gl.load_pruner(str(gl.save_pruner(pruner.float(), tmp_path / "pruner")))
    loaded.double()
    pruner.double()
    again = gl.PrunedVLM(model.backbone, loaded)
    torch.testing.assert_close(again.prefill(**batch.inputs).logits, model.prefill(**batch.inputs).logits)


def test_a_budget_that_no_choice_keeps_is_refused(setting: Any) -> None:
    model, _, batch = setting
    with pytest.raises(GlimpseError, match=r"`flops` of at least 0\.\d+.*earlier layer"):
        KL(flops=0.2).step(model, batch)


def test_there_must_be_a_glimpse_to_share() -> None:
    with pytest.raises(GlimpseError, match="shares_glimpse"):
        gl.Pruner([gl.PruneStage(1, vip(shares_glimpse=True), gl.policies.Threshold())]).build(FACTS)
    with pytest.raises(ValueError, match="`query` to name 'glimpse'"):
        vip(shares_glimpse=True, query="last")


def test_flops_of_hard_choices_are_those_that_tables_show() -> None:
    tokens = visual_tokens([[(1, 4, 4)], [(1, 2, 5), (1, 2, 2)]])
    text = torch.tensor([7, 9])
    early, late = torch.rand(30) > 0.4, torch.rand(30) > 0.5
    found = flops_share([early.float(), late.float()], [0, 3], tokens, text)
    each = []
    for sample, total in enumerate((16, 14)):
        mine = tokens.sample == sample
        stages = [StageTokens(0, int((early & mine).sum())), StageTokens(3, int((early & late & mine).sum()))]
        each.append(count_tokens(total, int(text[sample]), stages, FACTS).flops)
    assert float(found) == pytest.approx(sum(each) / 2, rel=1e-5)


def test_flops_price_early_stages_higher() -> None:
    """Every gate of an early stage saves more layers than one of a later stage."""
    tokens = visual_tokens([[(1, 4, 4)]])
    gates: list[Tensor] = [torch.full((16,), 0.5, requires_grad=True) for _ in range(2)]
    flops_share(gates, [0, 3], tokens, torch.tensor([5])).backward()
    first, second = (float(gate.grad.mean()) for gate in gates if gate.grad is not None)
    assert first > second > 0


def test_no_image_costs_nothing_extra() -> None:
    tokens = visual_tokens([[], [(1, 2, 2)]])
    share = flops_share([torch.ones(4)], [1], tokens, torch.tensor([5, 5]))
    assert float(share) == pytest.approx(1.0)
    assert len(replace(tokens).item) == 4
