"""Activation checkpointing changes what is kept for the backward pass, and nothing else."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import glimpse_lightning as gl
from glimpse_lightning.objectives import GRPO, KL, Attribution, Mask
from glimpse_lightning.objectives.base import Objective

REWARDS: dict[str, Any] = {"length": {"weight": 1.0, "free": 1, "longest": 6}}


def trained(objective: Objective, recompute: bool) -> tuple[dict[str, Tensor], int]:
    """Gradients of one step, and how many bytes were kept for them."""
    torch.manual_seed(0)
    scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2, attention_layers="all")
    pruner = gl.Pruner([gl.PruneStage(2, scorer, gl.policies.Threshold(min_tokens=2))])
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), pruner)
    model.backbone.recompute = recompute
    objective.prepare(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in objective.trainable))
    objective.remember(model)
    data = gl.GlyphVQA("train", 4, image_size=224)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective.step(model, model.backbone.collate([data[0], data[1]])).loss
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: KL(),
        lambda: Attribution(),
        lambda: Mask(),
        lambda: GRPO(
            REWARDS, ["language_model", "pruner"], group_size=4, prefills=2, max_new_tokens=6, temperature=4.0
        ),
    ],
    ids=["kl", "attribution", "mask", "grpo"],
)
def test_the_same_gradients_from_less_memory(make: Any) -> None:
    expected, usual = trained(make(), False)
    got, less = trained(make(), True)
    assert got.keys() == expected.keys() and any(bool(grad.any()) for grad in got.values())
    for name, grad in expected.items():
        torch.testing.assert_close(got[name], grad, msg=lambda text, name=name: f"{name}: {text}")
    assert less < 0.7 * usual
