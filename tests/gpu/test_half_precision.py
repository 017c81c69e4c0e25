"""bfloat16 and float16 on the device: a pruned model is as far from float32 as Hugging Face's own forward is."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.evaluation.evaluator import answer_log_probs
from glimpse_lightning.testing import SIZES

HALVES = [torch.bfloat16, torch.float16]


def pruner() -> gl.Pruner:
    """Stages whose choice is the same in any precision."""
    scorer = gl.scorers.Random
    return gl.Pruner(
        [gl.PruneStage(0, scorer(), gl.policies.KeepRatio(0.6)), gl.PruneStage(2, scorer(), gl.policies.KeepRatio(0.3))]
    )


@torch.no_grad()
def answers(family: str, dtype: torch.dtype, place: str) -> tuple[Tensor, Tensor, Tensor]:
    """Hugging Face's logits of the next token, ours of a pruned prompt, and of an answer decoded behind it."""
    backbone = gl.wrap_backbone(FAMILIES[family]().to(place, dtype))
    inputs = backbone.example_inputs(SIZES)
    plain = backbone.model(**backbone.hf_inputs(inputs), logits_to_keep=1).logits[:, -1]
    ids = torch.arange(20, 20 + 3 * len(SIZES), device=place).view(len(SIZES), 3)
    ones = torch.ones(len(SIZES), device=place)
    batch = Batch(inputs, ids, torch.ones_like(ids), torch.arange(len(SIZES), device=place), ones, [])
    model = gl.PrunedVLM(backbone, pruner())
    out = model.prefill(keys=batch.key, **inputs)
    assert out.logits.dtype == dtype
    return tuple(each.float().cpu() for each in (plain, out.logits, answer_log_probs(model, out, batch)))  # type: ignore[return-value]


def far(mine: Tensor, exact: Tensor) -> float:
    """The error's norm as a share of the value's."""
    return float((mine - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_further_from_float32_than_hugging_face(family: str, dtype: torch.dtype, device: str) -> None:
    exact, half = answers(family, torch.float32, "cpu"), answers(family, dtype, "cuda")
    theirs, pruned, decoded = (far(mine, other) for mine, other in zip(half, exact, strict=True))
    least = torch.finfo(dtype).eps
    assert pruned <= 3 * theirs + least
    assert decoded <= 3 * theirs + least
