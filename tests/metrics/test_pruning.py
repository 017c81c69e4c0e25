"""Metrics of pruning."""

from __future__ import annotations

import pytest
import torch

from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.metrics import EvidenceOverlap, OracleGap, Retention, TokenCounts, TokenKL


def test_retention() -> None:
    metric = Retention(quantiles=(0.0, 0.5), families=("color", "row"))
    metric.update(torch.tensor([1, 5, 0]), torch.tensor([10, 10, 0]), ["color", "row", "row"])
    metric.update(torch.tensor([3]), torch.tensor([10]), ["color"])
    out = metric.compute()
    assert {name: round(float(value), 6) for name, value in out.items()} == {
        "mean": 0.3, "p0": 0.1, "p50": 0.3, "color": 0.2, "row": 0.5,
    }  # fmt: skip
    assert metric.histogram(10).tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 0, 0]


def test_retention_of_everything_falls_into_the_last_bin() -> None:
    metric = Retention()
    metric.update(torch.tensor([4]), torch.tensor([4]))
    assert metric.histogram(4).tolist() == [0, 0, 0, 1]


def test_evidence_overlap() -> None:
    keep = torch.tensor([1, 1, 0, 0, 0, 0, 1], dtype=torch.bool)
    evidence = torch.tensor([1, 0, 1, 0, 1, 0, 0], dtype=torch.bool)
    metric = EvidenceOverlap()
    metric.update(keep, evidence, torch.tensor([0, 0, 0, 0, 1, 1, 2]), 3)
    # sample 0: 1 of 2 found among 2 kept, union 3; sample 1: nothing kept; sample 2: no evidence, does not count
    out = metric.compute()
    assert out["recall"] == pytest.approx(0.25)
    assert out["precision"] == pytest.approx(0.25)
    assert out["iou"] == pytest.approx(1 / 6)


def test_token_kl() -> None:
    full, pruned = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    metric = TokenKL()
    metric.update(full, pruned, mask)
    p = full.softmax(-1)
    expected = (p * (p.log() - torch.tensor(0.2).log())).sum(-1)[0, :2].mean()
    torch.testing.assert_close(metric.compute(), expected)
    same = TokenKL()
    same.update(full, full, mask)
    assert same.compute() == pytest.approx(0, abs=1e-6)


def test_first_token_kl() -> None:
    full, pruned = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 5)
    metric, first = TokenKL(first=True), TokenKL()
    metric.update(full, pruned, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    first.update(full[:, :1], pruned[:, :1], torch.ones(2, 1))
    assert metric.compute() == first.compute() > 0


def test_a_value_that_is_not_finite_makes_the_mean_nan() -> None:
    metric = TokenKL()
    metric.add(torch.tensor([1.0, torch.nan]))
    assert metric.compute().isnan()
    metric.reset()
    metric.add(torch.tensor([1.0]))
    assert metric.compute() == 1


def test_tokens_four_ways() -> None:
    facts = ModelFacts(
        num_layers=4, num_heads=1, num_kv_heads=1, head_dim=8, hidden_size=8, intermediate_size=16, rms_norm_eps=1e-6,
        vision_layers=1, vision_hidden_size=8,
    )  # fmt: skip
    sample = torch.tensor([0] * 8 + [1] * 2)
    before = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 1, 1], dtype=torch.bool)  # before layer 0
    after = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 1, 0], dtype=torch.bool)  # after layer 1
    metric = TokenCounts()
    metric.update([before, after], (-1, 1), sample, torch.tensor([2, 2]), facts)
    # sample 0 sees 4, 4, 1, 1 of 8 tokens, sample 1 sees 2, 2, 1, 1 of 2; each with 2 text tokens
    cost = facts.layer_flops
    flops = ((2 * cost(6) + 2 * cost(3)) / (4 * cost(10)) + (2 * cost(4) + 2 * cost(3)) / (4 * cost(4))) / 2
    expected = {"entering": 0.75, "layer_mean": (10 / 32 + 6 / 8) / 2, "decoding": (1 / 8 + 1 / 2) / 2, "flops": flops}
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected)


def test_tokens_of_a_full_model_and_of_a_prompt_without_image() -> None:
    facts = ModelFacts(2, 1, 1, 8, 8, 16, 1e-6, 1, 8)
    metric = TokenCounts()
    metric.update([], (), torch.tensor([0, 0]), torch.tensor([3, 3]), facts)
    assert all(value == 1 for value in metric.compute().values())
    assert metric.count == 1


def test_theory_of_prefill_cost() -> None:
    """The paper's efficiency table: Qwen2.5-VL-7B, K = 19 of 28 layers, 5,000 visual and 74 text tokens."""
    facts = ModelFacts(28, 28, 4, 128, 3584, 18944, 1e-6, 32, 1280)
    keep = torch.zeros(5000, dtype=torch.bool)
    keep[:130] = True  # 2.6 %
    metric = TokenCounts()
    metric.update([keep], (18,), torch.zeros(5000, dtype=torch.int64), torch.tensor([74]), facts)
    assert metric.compute()["flops"] == pytest.approx(0.690, abs=5e-4)


def test_oracle_gap() -> None:
    metric = OracleGap()
    scores, oracle = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    metric.update(scores, oracle, torch.tensor([5, 1, 0]), torch.tensor([1, 2, 0]), torch.tensor([10, 10, 0]))
    out = metric.compute()
    assert out["accuracy"] == 0.5
    assert out["retention"] == pytest.approx((0.4 - 0.1) / 2)
