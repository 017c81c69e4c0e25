"""The objective Attribution: its labels, its cost and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from factories import visual_tokens
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.metrics.token_kl import token_kl
from glimpse_lightning.objectives import Attribution
from glimpse_lightning.objectives.attribution import _label_loss, attributed
from glimpse_lightning.runtime.errors import GlimpseError


def pruned(*layers: int) -> gl.PrunedVLM:
    backbone = gl.load_backbone("glimpse-tiny")
    backbone.model.requires_grad_(False)
    torch.manual_seed(0)
    stages = [gl.PruneStage(at, gl.scorers.LateInteraction(dim=16), gl.policies.Threshold()) for at in layers]
    model = gl.PrunedVLM(backbone, gl.Pruner(stages))
    model.pruner.train()
    return model


def questions(model: gl.PrunedVLM, number: int = 6, start: int = 0) -> Any:
    dataset = gl.GlyphVQA("val", families=["read", "name"])
    return model.backbone.collate([dataset[start + index] for index in range(number)])


def test_a_gain_is_what_opening_a_gate_a_little_does() -> None:
    """Two samples of one query over six keys, of which closed ones have no weight; against finite differences."""
    torch.manual_seed(0)
    logits, values = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def attended(gates: Tensor) -> Tensor:
        return (logits.exp() * gates * values).sum(1) / (logits.exp() * gates).sum(1)

    closed = torch.tensor([[True, False, True, False, False, True], [False, True, True, True, False, False]])
    log_gates = torch.where(closed, -20.0, 0.0).double().requires_grad_()
    (gains,) = attributed(attended(log_gates.exp()), [log_gates])
    for place in closed.nonzero().tolist():
        step = torch.zeros(2, 6, dtype=torch.float64)
        step[tuple(place)] = 1e-7
        change = (attended((~closed).double()) - attended((~closed).double() + step)).sum() / 1e-7
        assert gains[tuple(place)].item() == pytest.approx(change.item(), rel=1e-4)


def test_missing_evidence_is_labelled() -> None:
    model = pruned(2)
    batch, objective = questions(model), Attribution(gain=0.3, open=0.1)
    seen: dict[str, list[Tensor]] = {"gain": [], "evidence": []}

    def gate(scores: Tensor, tokens: gl.VisualTokens) -> Tensor:
        closed = torch.where(torch.rand_like(scores) < objective.open, 0.0, -20.0).requires_grad_()
        leaves.append(closed)
        return closed

    torch.manual_seed(0)
    for _ in range(3):
        leaves: list[Tensor] = []
        out = model.distill(batch, gate)
        (gain,) = attributed(token_kl(out.teacher_logits, out.student_logits, batch.answer_mask), leaves)
        closed = leaves[0] < 0
        seen["gain"].append(gain[closed])
        seen["evidence"].append(evidence_mask(out.stages[0].tokens, batch.boxes).bool()[closed])
    worth, evidence = torch.cat(seen["gain"]) > objective.gain, torch.cat(seen["evidence"])
    assert worth[evidence].float().mean() > 5 * worth[~evidence].float().mean()


def test_the_loss_counts_missed_tokens_as_often_as_they_cost() -> None:
    """Two samples of four tokens, one of them open: means within samples, then over samples."""
    tokens, weight = visual_tokens([[(1, 2, 2)], [(1, 2, 2)]]), torch.tensor([1.0, 3.0])
    scores = torch.linspace(-2, 2, 8, requires_grad=True)
    label = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])
    labelled = torch.tensor([True, True, True, False, True, True, True, True])
    loss = _label_loss(scores, label, labelled, torch.tensor(5.0), tokens, weight)
    loss.backward()
    each = [
        5 * math.log(1 + math.exp(-score)) if worth else math.log(1 + math.exp(score))
        for score, worth in zip(scores.tolist(), label.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx((sum(each[:3]) / 3 + 3 * sum(each[4:]) / 4) / 4)
    assert scores.grad is not None
    assert (scores.grad[labelled] < 0).tolist() == label[labelled].bool().tolist()
    assert scores.grad[3] == 0


def test_no_gradient_of_the_decoder_reaches_the_scorer() -> None:
    """The gradient is that of a cross entropy on scores whose inputs are given."""
    model, objective = pruned(2), Attribution()
    torch.manual_seed(0)
    objective.step(model, questions(model, 2)).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads and all(name.startswith("pruner.") for name in grads)
    assert all(p.grad is None for p in model.backbone.model.parameters())


def test_the_cost_of_missing_follows_the_budget() -> None:
    objective, shows, weight = Attribution(retention=0.1), visual_tokens([[(1, 2, 2)], []]), torch.ones(2)
    worth = torch.tensor(0.02)

    def cost() -> float:
        return math.log(float(objective._log_cost.exp()) / 8)

    costs = []
    for kept in (0.1, 0.05, 0.0, 0.15, 0.9):
        objective._charge(torch.tensor(kept), worth, shows, weight)
        costs.append(cost())
    assert costs == pytest.approx([0.0, 0.025, 0.075, 0.05, 0.0], abs=1e-6)
    nothing = torch.tensor(0.0)
    objective._charge(nothing, nothing, visual_tokens([[], []]), weight)  # no image
    objective._charge(nothing, nothing, shows, torch.tensor([0.0, 1.0]))  # the one with an image does not count
    assert cost() == pytest.approx(0.0, abs=1e-6) and not objective.remarks()
    objective._charge(nothing, nothing, shows, weight)
    resumed = Attribution(retention=0.1)
    resumed.load_state_dict(objective.state_dict())
    assert torch.equal(resumed._log_cost, objective._log_cost) and torch.equal(resumed._worth, objective._worth)
    assert resumed._log_cost > Attribution()._log_cost


def test_a_training_without_anything_to_learn_says_so() -> None:
    objective, shows = Attribution(open=0.6), visual_tokens([[(1, 2, 2)]])
    assert not objective.remarks()
    for _ in range(3):
        objective._charge(torch.tensor(0.1), torch.tensor(2e-5), shows, torch.ones(1))
    (remark,) = objective.remarks()
    assert "0.0020% of them" in remark and "60% of the others open" in remark and "`model.objective.open`" in remark


def test_half_precision_is_refused() -> None:
    model = pruned(2)
    with torch.autocast("cpu", torch.float16), pytest.raises(GlimpseError, match=r"float16 rounds to 0.*bf16-mixed"):
        Attribution().step(model, questions(model, 1))


def test_later_stages_learn_of_tokens_that_earlier_ones_left_open() -> None:
    model, objective = pruned(1, 3), Attribution()
    torch.manual_seed(0)
    result = objective.step(model, questions(model, 2))
    result.loss.backward()
    assert result.logs["label_loss"].isfinite()
    for stage in model.pruner.stages:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.scorer.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"retention": 0},
        {"retention": 1.2},
        {"gain": 0.0},
        {"open": 0.0},
        {"open": 1.0},
        {"missing": 0.0},
        {"missing": 1},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Attribution(**options)
