"""The KL objective: its gates, its budget and their schedule."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from factories import visual_tokens

import glimpse_lightning as gl
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.metrics.token_kl import token_kl
from glimpse_lightning.objectives import KL
from glimpse_lightning.objectives.kl import hard_log_gates, log_gates


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


def test_a_hard_gate_is_open_or_closed_as_often_as_its_score_says() -> None:
    torch.manual_seed(0)
    for score in (-3.0, 0.0, 2.0):
        gates = hard_log_gates(torch.full((20000,), score), largest=1.0)
        assert set(gates.unique().tolist()) == {0.0, -20.0}
        assert (gates == 0).float().mean().item() == pytest.approx(torch.tensor(score).sigmoid().item(), abs=0.01)


def test_a_closed_gates_gradient_is_what_opening_it_a_little_does() -> None:
    """One query over six keys, of which closed ones have no weight: slope by finite differences, times sigmoid'."""
    torch.manual_seed(0)
    logits, values = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)

    def attended(gates: torch.Tensor) -> torch.Tensor:
        return (logits.exp() * gates * values).sum() / (logits.exp() * gates).sum()

    scores = torch.tensor([40.0, -9.0, 40.0, -9.0, -12.0, 40.0], requires_grad=True)
    gates = hard_log_gates(scores, largest=100.0).double()
    closed = gates < 0
    assert closed.tolist() == [False, True, False, True, True, False]
    attended(gates.exp()).backward()
    chance = scores.detach().sigmoid()
    for token in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[token] = 1e-6
        open_gates = (~closed).double()
        slope = (attended(open_gates + step) - attended(open_gates)) / 1e-6
        assert scores.grad is not None
        assert scores.grad[token].item() == pytest.approx((slope * chance * (1 - chance))[token].item(), rel=1e-3)
    bounded = torch.full((6,), -9.0, requires_grad=True)
    (1e9 * hard_log_gates(bounded, largest=0.5)).sum().backward()
    assert bounded.grad is not None
    assert bounded.grad.max().item() == pytest.approx(0.5 * (chance * (1 - chance))[1].item())


def test_with_hard_gates_closed_evidence_is_called_back() -> None:
    """With 9 of 10 gates closed, the loss falls where evidence scores higher, and hardly where other tokens do."""
    _, model, _ = objective_on_batch()
    dataset = gl.GlyphVQA("val", families=["read", "name"])
    batch = model.backbone.collate([dataset[index] for index in range(6)])
    torch.manual_seed(0)
    total: torch.Tensor | None = None
    for _ in range(6):
        scores = torch.full((6 * 256,), -2.2, requires_grad=True)
        out = model.distill(batch, lambda _, tokens, scores=scores: hard_log_gates(scores, 10 / tokens.num_samples))
        token_kl(out.teacher_logits, out.student_logits, batch.answer_mask).mean().backward()
        assert scores.grad is not None
        total = -scores.grad if total is None else total - scores.grad
    evidence = evidence_mask(out.stages[0].tokens, batch.boxes).bool()
    assert total is not None
    assert total[evidence].mean() > 10 * total[~evidence].mean().abs()


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


def test_batches_meet_the_budget_together() -> None:
    """What a token costs depends on the batches before, not on this one's questions; alone it is as without them."""
    alone, together, resumed = KL(budget_batches=1), KL(budget_batches=4), KL(budget_batches=4)
    shows, weight = visual_tokens([[(1, 2, 2)], []]), torch.ones(2)
    means, slopes = [], []
    for share in (0.8, 0.4, 0.1):
        spent = torch.tensor(share, requires_grad=True)
        assert alone._of_last_batches(spent, shows, weight) is spent
        mean = together._of_last_batches(spent, shows, weight)
        (mean - 0.05).square().backward()
        means.append(mean.item())
        slopes.append(spent.grad.item())
    assert means == pytest.approx([0.8, 0.7, 0.55])
    assert slopes == pytest.approx([2 * (mean - 0.05) for mean in means])
    resumed.load_state_dict(together.state_dict())
    assert resumed._of_last_batches(torch.tensor(0.15), shows, weight).item() == pytest.approx(0.45)


@pytest.mark.parametrize(("samples", "weight"), [([[], []], [1.0, 1.0]), ([[(1, 2, 2)], []], [0.0, 1.0])])
def test_batches_that_show_no_image_do_not_lower_the_price(samples: list[Any], weight: list[float]) -> None:
    objective, shows = KL(budget_batches=4), visual_tokens([[(1, 2, 2)]])
    blank = visual_tokens(samples), torch.tensor(weight)
    assert objective._of_last_batches(torch.tensor(0.0), *blank) == 0  # the first batch of all
    assert objective._of_last_batches(torch.tensor(0.8), shows, torch.ones(1)).item() == pytest.approx(0.8)
    assert objective._of_last_batches(torch.tensor(0.0), *blank).item() == pytest.approx(0.8)
    assert objective._of_last_batches(torch.tensor(0.4), shows, torch.ones(1)).item() == pytest.approx(0.7)


@pytest.mark.parametrize(
    "options",
    [
        {"budget_batches": 0},
        {"retention": 0},
        {"retention": 1.2},
        {"initial": 0},
        {"temperature": 0.0},
        {"gates": "open"},
    ],
)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Expected `{next(iter(options))}`"):
        KL(**options)
