"""Advantages, surrogate and means; against the reference's numbers where it has them (tests/golden/losses)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_numbers import tensors
from torch.nn.utils.rnn import pad_sequence

from glimpse_lightning.objectives.losses import k3
from glimpse_lightning.objectives.policy_gradient import (
    clipped_objective,
    group_advantages,
    reduce_tokens,
    sequence_mask,
)

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-4}
ALL = torch.ones(1, 4, dtype=torch.bool)


def test_advantages_of_the_reference() -> None:
    golden = tensors("losses/losses")
    rewards = golden["rl.scores"].sum(1)[None]
    advantages = group_advantages(rewards, ALL, "grpo")[0]
    torch.testing.assert_close(advantages, golden["rl.advantages"], **CLOSE)


@pytest.mark.parametrize("name", ["reward", "kd"])
def test_losses_of_the_reference_and_their_gradients(name: str) -> None:
    golden = tensors("losses/losses")
    leaves = [golden[f"rl.logps{i}"].clone().requires_grad_() for i in range(4)]
    log_probs = pad_sequence(leaves, batch_first=True)
    reference = pad_sequence([golden[f"rl.ref_logps{i}"] for i in range(4)], batch_first=True)
    mask = pad_sequence([torch.ones(len(leaf)) for leaf in leaves], batch_first=True)
    if name == "reward":
        values = clipped_objective(log_probs, log_probs.detach(), golden["rl.advantages"][:, None], None)
        loss = reduce_tokens(values, mask, torch.ones(4), "sequence", 9)
    else:
        loss = 0.04 * reduce_tokens(k3(log_probs, reference), mask, torch.ones(4), "sequence", 9)
    torch.testing.assert_close(loss, golden[f"rl.{name}_loss"], **CLOSE)
    loss.backward()
    for i, leaf in enumerate(leaves):
        torch.testing.assert_close(leaf.grad, golden[f"rl.{name}_grad{i}"], **CLOSE)


def test_variants_of_the_advantage() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 7.0, 7.0], [3.0, 7.0, 7.0, 7.0]])
    valid = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False], [True, False, False, False]])
    for variant, scale in (("dr_grpo", (1.0, 1.0)), ("rloo", (4 / 3, 2.0))):
        got = group_advantages(rewards, valid, variant)  # type: ignore[arg-type]
        torch.testing.assert_close(got[0], torch.tensor([0.5, -0.5, -0.5, 0.5]) * scale[0])
        torch.testing.assert_close(got[2], torch.tensor([1.0, -1.0, 0.0, 0.0]) * scale[1])
        assert not got[[1, 3]].any()
    grpo = group_advantages(rewards, valid, "grpo")
    torch.testing.assert_close(grpo[0], (rewards[0] - 0.5) / (rewards[0].std() + 1e-4))
    assert not grpo[[1, 3]].any()


def test_an_unknown_reward_cannot_spread() -> None:
    rewards = torch.tensor([[1.0, torch.nan, 0.0]])
    got = group_advantages(rewards, ~rewards.isnan(), "dr_grpo")
    torch.testing.assert_close(got, torch.tensor([[0.5, 0.0, -0.5]]))


def test_clipping_stops_the_gradient_where_the_ratio_has_moved_far_enough() -> None:
    log_probs = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.1], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    clipped_objective(log_probs, torch.zeros(5), advantages, (0.2, 0.3)).sum().backward()
    assert log_probs.grad is not None
    assert (log_probs.grad != 0).tolist() == [False, True, True, False, True]


def test_means() -> None:
    values, mask = torch.tensor([[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    both, second = torch.ones(2), torch.tensor([0.0, 1.0])
    assert reduce_tokens(values, mask, both, "sequence", 10).item() == pytest.approx((1.5 + 4) / 2)
    assert reduce_tokens(values, mask, both, "token", 10).item() == pytest.approx(15 / 5)
    assert reduce_tokens(values, mask, both, "constant", 10).item() == pytest.approx((3 + 12) / 10 / 2)
    for mean in ("sequence", "token"):
        assert reduce_tokens(values, mask, second, mean, 10).item() == pytest.approx(4)  # type: ignore[arg-type]
    assert reduce_tokens(values, mask, torch.zeros(2), "token", 10) == 0


def test_an_answer_ends_with_its_first_end_token() -> None:
    ids = torch.tensor([[5, 2, 0, 0], [5, 6, 7, 8], [3, 2, 2, 2]])
    expected = [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert sequence_mask(ids, torch.tensor([2, 3])).int().tolist() == expected
