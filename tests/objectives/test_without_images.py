"""Batches without any image: chance puts them together, so a training has to survive them, on all ranks alike."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_two_ranks

import glimpse_lightning as gl
from glimpse_lightning.objectives import GRPO, KL, Attribution, DifferentiableTopK, Mask, Objective, Supervised


def vip(layer: int) -> gl.PruneStage:
    scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2, standardise=True)
    return gl.PruneStage(layer, scorer, gl.policies.Threshold())


OBJECTIVES: dict[str, tuple[Objective, list[int]]] = {
    "kl": (KL(), [2]),
    "kl, two stages, flops": (KL(flops=0.9), [1, 3]),
    "attribution": (Attribution(), [2]),
    "attribution, two stages": (Attribution(), [1, 3]),
    "mask": (Mask(), [2]),
    "top k": (DifferentiableTopK(), [2]),
    "supervised": (Supervised(), [2]),
    "grpo": (GRPO(group_size=2, max_new_tokens=2, train=["pruner", "language_model"]), [2]),
    "grpo of the pruner": (GRPO(group_size=2, max_new_tokens=2, train=["pruner"]), [2]),
}


def step(name: str, *images: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and logs of one step, and of its backward pass, on samples of which some keep their image."""
    torch.manual_seed(0)
    objective, layers = OBJECTIVES[name]
    model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([vip(layer) for layer in layers]))
    assert model.pruner is not None
    model.pruner.train()
    objective.prepare(model)
    objective.remember(model)
    objective.start(model)
    objective.progress = 0.5
    data = gl.GlyphVQA("train", 6, image_size=224)
    nothing: dict[str, Any] = {"images": [], "boxes": []}
    samples = [data[i] if image else dataclasses.replace(data[i], **nothing) for i, image in enumerate(images)]
    result = objective.step(model, model.backbone.collate(samples))
    result.loss.backward()
    for parameter in model.pruner.parameters():
        assert parameter.grad is None or not parameter.grad.isnan().any()
    return result.loss.detach(), result.logs


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_without_images(name: str) -> None:
    loss, logs = step(name, False, False)
    assert torch.isfinite(loss)
    assert not any(value.isnan() for value in logs.values())


def one_rank_without(name: str) -> float:
    torch.distributed.init_process_group("gloo")
    return float(step(name, torch.distributed.get_rank() == 0)[0])


RANKS = ["kl", "kl, two stages, flops", "attribution", "attribution, two stages", "mask", "grpo"]


@pytest.mark.parametrize("name", RANKS)
def test_a_rank_without_images_keeps_nobody_waiting(name: str, tmp_path: Path) -> None:
    assert all(math.isfinite(loss) for loss in on_two_ranks(one_rank_without, tmp_path, name, timeout=60))
