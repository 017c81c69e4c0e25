"""Losses against the reference's numbers (tests/golden/losses)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import visual_tokens
from golden_numbers import GOLDEN, tensors
from torch import Tensor

from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.objectives.losses import answer_loss, bce_loss, dice_loss, k3_kl, mask_loss

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-4}


def packed() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logits of both samples as leaves ``[3, N]``, and target, sample of their last rows packed."""
    golden = tensors("losses/losses")
    first, second = (golden[f"loss.logits{i}"].clone().requires_grad_() for i in range(2))
    target = torch.cat([golden[f"loss.mask{i}"].flatten() for i in range(2)])
    sample = torch.tensor([0] * first.shape[1] + [1] * second.shape[1])
    return first, second, torch.cat([first[-1], second[-1]]), target, sample


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "dice": lambda logits, target, sample: dice_loss(logits, target, sample, 2).mean(),
    "bce": lambda logits, target, sample: bce_loss(logits, target, sample, 2).mean(),
    "mask_1_0p1": lambda logits, target, sample: mask_loss(logits, target, sample, 2),
    "mask_default": lambda logits, target, sample: mask_loss(logits, target, sample, 2, 0.5, 0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name: str) -> None:
    golden = tensors("losses/losses")
    first, second, logits, target, sample = packed()
    loss = LOSSES[name](logits, target, sample)
    torch.testing.assert_close(loss, golden[f"loss.{name}"], **CLOSE)
    loss.backward()
    torch.testing.assert_close(first.grad, golden[f"loss.{name}.grad0"], **CLOSE)
    torch.testing.assert_close(second.grad, golden[f"loss.{name}.grad1"], **CLOSE)


def test_deep_supervision_sums_over_heads() -> None:
    golden = tensors("losses/losses")
    first, second, _, target, sample = packed()
    rows = torch.cat([first, second], 1)
    # The reference's total was stored with a location weight of 0.7: so say value and gradients alike.
    loss = 0.7 * torch.stack([mask_loss(row, target, sample, 2) for row in rows]).sum()
    torch.testing.assert_close(loss, golden["loc.deep_supervision_total"], **CLOSE)
    loss.backward()
    torch.testing.assert_close(first.grad, golden["loc.grad0"], **CLOSE)
    torch.testing.assert_close(second.grad, golden["loc.grad1"], **CLOSE)


def test_k3() -> None:
    golden = tensors("losses/losses")
    policy = [golden[f"rl.logps{i}"].clone().requires_grad_() for i in range(4)]
    reference = torch.cat([golden[f"rl.ref_logps{i}"] for i in range(4)])
    sample = torch.arange(4).repeat_interleave(torch.tensor([len(p) for p in policy]))
    loss = 0.04 * k3_kl(torch.cat(policy), reference, sample, 4)
    torch.testing.assert_close(loss, golden["rl.kd_loss"], **CLOSE)
    loss.backward()
    for i, leaf in enumerate(policy):
        torch.testing.assert_close(leaf.grad, golden[f"rl.kd_grad{i}"], **CLOSE)


@pytest.mark.parametrize("case", range(8))
def test_boxes_to_tokens(case: int) -> None:
    golden = tensors("losses/losses")
    height, width, boxes = json.loads((GOLDEN / "losses" / "losses.json").read_text())["box_cases"][case]
    tokens = visual_tokens([[(1, height, width)]])
    mask = evidence_mask(tokens, [[[tuple(box) for box in boxes]]])
    assert torch.equal(mask.view(height, width), golden[f"box.{case}.mask"])


def test_samples_of_weight_zero_do_not_count() -> None:
    logits, target, sample = torch.randn(9), torch.randint(0, 2, (9,)), torch.tensor([0] * 4 + [1] * 5)
    both = mask_loss(logits, target, sample, 2, weight=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(both, mask_loss(logits[:4], target[:4], sample[:4], 1))


def test_answer_loss_ignores_padding() -> None:
    logits, ids = torch.randn(2, 3, 7), torch.randint(0, 7, (2, 3))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = [-logits[i, :n].log_softmax(-1).gather(-1, ids[i, :n, None]).mean() for i, n in enumerate((2, 3))]
    torch.testing.assert_close(answer_loss(logits, ids, mask), torch.stack(rows).mean())
