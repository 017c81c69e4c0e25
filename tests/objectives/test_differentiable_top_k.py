"""VisionSelector's training: the soft top-k mask, and steps on a real (tiny) model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import FACTS, visual_tokens
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.objectives import KL, DifferentiableTopK
from glimpse_lightning.objectives.differentiable_top_k import soft_top_k
from glimpse_lightning.objectives.losses import answer_loss
from glimpse_lightning.policies import KeepRatio, TopK
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import VisionSelector


def by_newton(scores: Tensor, budget: float) -> Tensor:
    """The same of one group, in double precision, by another way of finding t."""
    t = torch.zeros((), dtype=torch.float64)
    for _ in range(2000):
        value = (scores.double() + t).sigmoid()
        t = t + ((budget - value.sum()) / (value * (1 - value)).sum().clamp(min=1e-9)).clamp(-1, 1)
    return (scores.double() + t).sigmoid()


@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_soft_mask_sums_to_the_budget_of_each_group(spread: float) -> None:
    group = torch.tensor([0] * 30 + [1] * 3 + [3])
    budget = torch.tensor([4.0, 1.0, 1.0, 1.0])
    scores = torch.randn(34, generator=torch.Generator().manual_seed(0)) * spread + 5
    mask = soft_top_k(scores, group, budget)
    for label in (0, 1):
        mine = group == label
        assert float(mask[mine].sum()) == pytest.approx(float(budget[label]), abs=1e-3)
        torch.testing.assert_close(
            mask[mine].double(), by_newton(scores[mine], float(budget[label])), atol=2e-4, rtol=0
        )
    assert mask[-1] > 0.999  # one token, budget one


def test_soft_mask_has_the_gradient_of_the_constrained_sum() -> None:
    scores = torch.randn(12, generator=torch.Generator().manual_seed(1)).requires_grad_()
    group, budget = torch.zeros(12, dtype=torch.int64), torch.tensor([3.0])
    jacobian = torch.autograd.functional.jacobian(lambda s: soft_top_k(s, group, budget), scores)
    value = soft_top_k(scores, group, budget).detach()
    slope = value * (1 - value)
    torch.testing.assert_close(jacobian, slope.diag() - slope[:, None] * slope / slope.sum(), atol=1e-5, rtol=1e-4)
    step = 1e-2
    for i in (0, 7):
        nudged = scores.detach().double().clone()
        nudged[i] += step
        below = scores.detach().double().clone()
        below[i] -= step
        numeric = (by_newton(nudged, 3.0) - by_newton(below, 3.0)) / (2 * step)
        torch.testing.assert_close(jacobian[:, i].double(), numeric, atol=1e-4, rtol=1e-3)


def test_masks_are_of_samples_and_do_not_feel_their_mates() -> None:
    tokens = visual_tokens([[(1, 4, 5)], [], [(1, 2, 2), (1, 3, 3)], [(1, 1, 1)]])
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(2))
    soft, hard = DifferentiableTopK(0.25).masks(scores, tokens)
    assert torch.equal(hard.bool(), KeepRatio(0.25).select(scores, tokens))
    for sample in range(4):
        mine = tokens.sample == sample
        assert float(soft[mine].sum()) == pytest.approx(float(hard[mine].sum()), abs=1e-3)
    alone = visual_tokens([[(1, 4, 5)]])
    torch.testing.assert_close(DifferentiableTopK(0.25).masks(scores[:20], alone)[0], soft[:20])


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    backbone = gl.load_backbone("glimpse-tiny")
    data = gl.GlyphVQA("train", size=4, image_size=224)
    return backbone, backbone.collate([data[i] for i in range(3)])


def model_of(backbone: Any) -> gl.PrunedVLM:
    torch.manual_seed(0)
    scorer = VisionSelector(dim=16, normalise=True)
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(-1, scorer, KeepRatio(0.2))]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("pruner."))
    return model


def test_step_is_the_answer_loss_and_the_mask_loss(tiny: tuple[Any, Any]) -> None:
    backbone, batch = tiny
    model, objective = model_of(backbone), DifferentiableTopK(0.2, weight=2.0, anneal=0.5)
    objective.progress = 0.25
    result = objective.step(model, batch)
    gated = {}

    def gate(scores: Tensor, tokens: Any) -> Tensor:
        gated["soft"], gated["hard"] = objective.masks(scores, tokens)
        gated["sample"] = tokens.sample
        return gated["soft"].log()

    answer = answer_loss(
        model.distill(batch, gate).student_logits, batch.answer_ids, batch.answer_mask, batch.weight
    )  # fmt: skip
    soft, hard = gated["soft"], gated["hard"]
    loss = -(hard * soft.log() + (1 - hard) * (1 - soft).log())
    bce = torch.stack([loss[gated["sample"] == sample].mean() for sample in range(3)]).mean()
    torch.testing.assert_close(result.loss, answer + 1.0 * bce)  # half way up: weight 1 of 2
    assert result.logs["hard_retention"] == pytest.approx(12 / 64)
    result.loss.backward()
    assert model.pruner is not None
    parts = dict(model.pruner.stages[0].scorer.named_parameters())
    assert parts.keys() == {"query.weight", "query.bias", "key.weight", "key.bias"}
    assert all(part.grad is not None and part.grad.abs().max() > 0 for part in parts.values())


@pytest.mark.parametrize("objective", [DifferentiableTopK(0.2, anneal=0.0), KL(0.2)], ids=lambda o: type(o).__name__)
def test_training_lowers_the_loss(tiny: tuple[Any, Any], objective: Any) -> None:
    backbone, batch = tiny
    model = model_of(backbone)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    objective.progress, losses = 1.0, []
    for _ in range(12):
        torch.manual_seed(0)  # KL's gates are drawn
        loss = objective.step(model, batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        out = model.prefill(**batch.inputs)
    assert out.keep[0].float().mean() == pytest.approx(12 / 64)


def test_without_visual_tokens(tiny: tuple[Any, Any]) -> None:
    tokens = visual_tokens([[], []])
    soft, hard = DifferentiableTopK().masks(torch.zeros(0), tokens)
    assert len(soft) == len(hard) == 0


@pytest.mark.parametrize(("bad", "name"), [({"retention": 0.0}, "retention"), ({"weight": -1.0}, "weight")])
def test_bad_arguments(bad: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        DifferentiableTopK(**bad)


# -- the scorer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
def test_vision_selector_is_the_mean_over_all_pairs(normalise: bool) -> None:
    tokens = visual_tokens([[(1, 3, 4)], [], [(1, 2, 2), (2, 3, 2)], [(1, 1, 1)]])
    torch.manual_seed(0)
    scorer = VisionSelector(dim=8, normalise=normalise)
    scorer.build(tokens.facts, -1)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    scores = scorer(tokens)
    x = tokens.hidden / tokens.hidden.square().mean(-1, keepdim=True).sqrt() if normalise else tokens.hidden
    for i in range(len(tokens)):
        mine = (tokens.item == tokens.item[i]).nonzero().flatten()
        pairs = torch.stack([(scorer.query(x[i]) * scorer.key(x[j])).sum() / 8**0.5 for j in mine])
        torch.testing.assert_close(scores[i], pairs.mean(), atol=1e-4, rtol=1e-4)


def test_vision_selector_has_the_published_size_and_start() -> None:
    scorer = VisionSelector()
    with torch.device("meta"):
        scorer.build(replace(FACTS, hidden_size=3584), -1)
    assert sum(p.numel() for p in scorer.parameters()) == 2 * (3584 * 1792 + 1792)  # 12.85 M
    torch.manual_seed(0)
    scorer.build(replace(FACTS, hidden_size=1024), -1)
    for parameter in scorer.parameters():
        assert parameter.std().item() == pytest.approx(1e-4, rel=0.1)
    with pytest.raises(ValueError, match="`dim`"):
        VisionSelector(dim=0)


def test_a_vision_selector_without_biases_is_refused(tmp_path: Path) -> None:
    """Earlier versions saved `offset` in place of biases, which these cannot express."""
    torch.manual_seed(0)
    pruner = gl.Pruner([gl.PruneStage(-1, VisionSelector(dim=8), TopK(5))])
    pruner.build(FACTS)
    state = pruner.state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("bias")}
    old["stages.0.scorer.offset"] = torch.tensor(0.3)
    gl.save_pruner(pruner, tmp_path / "old", weights=old)
    with pytest.raises(GlimpseError, match=r"biases.*Train it again"):
        gl.load_pruner(tmp_path / "old")
    with pytest.raises(GlimpseError, match="offset"):
        pruner.load_state_dict(old)
    pruner.load_state_dict(state)
