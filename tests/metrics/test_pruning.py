"""Metrics of pruning."""

from __future__ import annotations

import pytest
import torch

from glimpse_lightning.metrics import EvidenceOverlap, Retention, TokenKL


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
