"""The way that training steps are measured against gives the same losses and gradients as ours."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch

import glimpse_lightning as gl
from glimpse_lightning.bench.straightforward import StraightforwardVLM
from glimpse_lightning.bench.training import training_batch
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.objectives import KL, Mask
from glimpse_lightning.objectives.base import Objective
from glimpse_lightning.runtime.errors import GlimpseError


def pruner(layer: int = 1, **kwargs: Any) -> gl.Pruner:
    scorer = gl.scorers.VIP(vision_layers=[1, 0], attention_dim=16, condition_dim=16, heads=2, dropout=0.0, **kwargs)
    return gl.Pruner([gl.PruneStage(layer, scorer, gl.policies.Threshold())])


def step(model: PrunedVLM, objective: Objective, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    assert model.pruner is not None
    model.pruner.zero_grad()
    torch.manual_seed(0)  # of the gates' noise
    loss = objective.step(model, batch).loss
    loss.backward()
    grads = {name: p.grad for name, p in model.pruner.named_parameters()}
    return loss.detach(), {name: None if grad is None else grad.clone() for name, grad in grads.items()}


@pytest.mark.parametrize("objective", [Mask(answer_weight=0), Mask(), KL()], ids=["mask", "mask_answers", "kl"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava"])
@pytest.mark.parametrize("kwargs", [{}, {"attention_layers": "all", "attention": "log_softmax", "glimpse_length": 2}])
def test_same_loss_and_gradients(family: str, objective: Objective, kwargs: Any) -> None:
    backbone = gl.wrap_backbone(tiny_models.FAMILIES[family]().double())
    backbone.model.requires_grad_(False)
    objective.progress = 0.5  # gates as soft as they are; sharp ones pass no gradient to untrained scores
    ours = PrunedVLM(backbone, pruner(**kwargs))
    assert ours.pruner is not None
    ours.pruner.double()
    plain = StraightforwardVLM(backbone, ours.pruner)
    batch = training_batch(backbone, backbone.example_inputs([[(2, 4)], [(4, 4)]]), answer_tokens=5)
    batch.answer_mask[0, 3:] = 0
    loss, grads = step(ours, objective, batch)
    other_loss, other = step(plain, objective, batch)
    torch.testing.assert_close(loss, other_loss)
    torch.testing.assert_close(grads, other)
    assert sum(grad is not None and bool(grad.abs().max() > 0) for grad in grads.values()) > 10


def test_what_it_cannot_run_is_refused() -> None:
    backbone = gl.wrap_backbone(tiny_models.llava())
    batch = training_batch(backbone, backbone.example_inputs([[(4, 4)]]), answer_tokens=2)
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.5))
    with pytest.raises(GlimpseError, match="one stage whose scorer has a glimpse token"):
        StraightforwardVLM(backbone, gl.Pruner([stage])).glimpse_forward(batch)
