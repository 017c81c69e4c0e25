"""The KL objective: its gates, its budget and their schedule."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import glimpse_lightning as gl
from glimpse_lightning.objectives import KL
from glimpse_lightning.objectives.kl import log_gates


def objective_on_batch(**options: float) -> tuple[KL, gl.PrunedVLM, object]:
    backbone = gl.load_backbone("glimpse-tiny")
    backbone.model.requires_grad_(False)
    torch.manual_seed(0)
    scorer = gl.scorers.VIP(dropout=0.0, attention_dim=16, condition_dim=16, standardise=True)
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, scorer, gl.policies.Threshold())]))
    dataset = gl.GlyphVQA("val", image_size=224, questions_per_image=2)
    return KL(**options), model, backbone.collate([dataset[i] for i in range(3)])


def test_a_gate_is_open_as_often_as_its_score_says() -> None:
    torch.manual_seed(0)
    for score in (-3.0, 0.0, 2.0):
        gates = log_gates(torch.full((20000,), score), temperature=0.3).exp()
        assert (gates > 0.5).float().mean().item() == pytest.approx(torch.tensor(score).sigmoid().item(), abs=0.01)
        assert not gates.isnan().any()
        assert ((gates > 1e-4) | (gates == 0)).all()


def test_the_target_falls_by_a_constant_factor() -> None:
    objective = KL(retention=0.05, initial=0.4, anneal=0.5)
    targets = []
    for objective.progress in (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0):
        targets.append(objective.target)
    ratios = [later / earlier for earlier, later in pairwise(targets)]
    assert targets[0] == pytest.approx(0.4)
    assert ratios[:4] == pytest.approx([ratios[0]] * 4)
    assert targets[4:] == pytest.approx([0.05] * 3)
    assert KL(retention=0.5, initial=0.3).target == pytest.approx(0.5)


def test_the_budget_pulls_from_both_sides() -> None:
    for target, direction in ((0.2, 1), (0.9, -1)):
        objective, model, batch = objective_on_batch(retention=target, anneal=0.0, budget_weight=100.0)
        result = objective.step(model, batch)
        result.loss.backward()
        (head,) = (p for name, p in model.pruner.named_parameters() if name.endswith("attn_out_projs.3.bias"))
        assert result.logs["retention"].item() == pytest.approx(0.5)  # logits start at 0
        assert result.logs["budget"].item() == pytest.approx((0.5 - target) ** 2 / target)
        assert head.grad.item() * direction > 0


@pytest.mark.parametrize("options", [{"retention": 0}, {"retention": 1.2}, {"initial": 0}, {"temperature": 0.0}])
def test_wrong_options(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(options))}`"):
        KL(**options)
