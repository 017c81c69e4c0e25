"""Greedy selections against plain Python over one group at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import visual_tokens
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies import DPP, MMR, Coverage, MaxMin
from glimpse_lightning.policies import greedy as greedy_module
from glimpse_lightning.policies.scale import min_max

BATCH = [[(1, 3, 4)], [], [(1, 2, 2), (2, 3, 3)], [(1, 6, 1)], [(1, 1, 1)]]


def best(gains: list[float], chosen: list[int]) -> int:
    return max((i for i in range(len(gains)) if i not in chosen), key=lambda i: (gains[i], -i))


def max_min(x: Tensor, scores: list[float], budget: int) -> list[int]:
    cos, n = (x @ x.T).tolist(), len(x)
    chosen = [best([min((1 - cos[i][j] for j in range(n) if j != i), default=9) for i in range(n)], [])]
    while len(chosen) < budget:
        chosen.append(best([min(1 - cos[i][j] for j in chosen) for i in range(n)], chosen))
    return chosen


def mmr(x: Tensor, scores: list[float], budget: int) -> list[int]:
    cos, n = (x @ x.T).tolist(), len(x)
    low, high = min(scores), max(scores)
    importance = [(s - low) / (high - low) if high > low else 1.0 for s in scores]
    chosen: list[int] = []
    while len(chosen) < budget:
        redundancy = [max((cos[i][j] for j in chosen), default=0.0) for i in range(n)]
        chosen.append(best([0.7 * importance[i] - 0.3 * redundancy[i] for i in range(n)], chosen))
    return chosen


def coverage(x: Tensor, scores: list[float], budget: int) -> list[int]:
    cos, n = (x @ x.T).tolist(), len(x)
    saliency = torch.tensor(scores).exp().tolist()
    chosen: list[int] = []
    while len(chosen) < budget:
        covered = [max((cos[i][k] for k in chosen), default=0.0) for i in range(n)]
        covered = [max(0.0, c) for c in covered]
        gains = [saliency[j] ** 0.5 * sum(max(0.0, cos[i][j] - covered[i]) for i in range(n)) for j in range(n)]
        chosen.append(best(gains, chosen))
    return chosen


def dpp(x: Tensor, scores: list[float], budget: int) -> list[int]:
    """By determinants, not by Cholesky updates."""
    low, high, n = min(scores), max(scores), len(x)
    r = torch.tensor([(s - low + 1e-6) / (high - low) if high > low else 1.0 for s in scores]).double()
    kernel = r[:, None] * (x @ x.T).double() * r
    chosen: list[int] = []
    while len(chosen) < budget:
        sets = [[*chosen, i] for i in range(n)]
        gains = [float(torch.linalg.det(kernel[s][:, s])) if s[-1] not in chosen else -1.0 for s in sets]
        chosen.append(best(gains, chosen))
    return chosen


RULES: dict[str, tuple[Callable[..., Any], Callable[..., list[int]]]] = {
    "MaxMin": (MaxMin, max_min),
    "MMR": (lambda **k: MMR(trade_off=0.7, **k), mmr),
    "Coverage": (lambda **k: Coverage(power=0.5, **k), coverage),
    "DPP": (DPP, dpp),
}


def random_scores(tokens: VisualTokens) -> Tensor:
    return torch.randn(len(tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("ratio", [0.0, 0.11, 0.34, 0.8])
@pytest.mark.parametrize("name", RULES)
def test_same_as_plain_python(name: str, ratio: float) -> None:
    make, rule = RULES[name]
    tokens = visual_tokens(BATCH)
    scores = random_scores(tokens)
    keep = make(ratio=ratio, per="item").select(scores, tokens)
    for item in range(tokens.num_items):
        mine = (tokens.item == item).nonzero().flatten()
        x = F.normalize(tokens.hidden[mine], dim=-1)
        expected = rule(x, scores[mine].tolist(), max(1, int(ratio * len(mine) + 1e-9)))
        assert keep[mine].nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("name", RULES)
def test_few_pairs_at_a_time_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, tokens = RULES[name][0](ratio=0.4), visual_tokens(BATCH)
    scores = random_scores(tokens)
    keep = policy.select(scores, tokens)
    monkeypatch.setattr(greedy_module, "PAIRS", 1)
    assert torch.equal(policy.select(scores, tokens), keep)


@pytest.mark.parametrize("name", RULES)
def test_equal_tokens_are_chosen_by_position(name: str) -> None:
    tokens = visual_tokens([[(1, 2, 3)]])
    same = replace(tokens, hidden=torch.eye(tokens.hidden.shape[1])[:1].expand(6, -1))
    assert RULES[name][0](count=3).select(torch.zeros(6), same).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("name", RULES)
def test_count_minus_infinity_and_floor(name: str) -> None:
    make, tokens = RULES[name][0], visual_tokens([[(1, 2, 3)], [(1, 1, 2)]])
    scores = random_scores(tokens)
    scores[[0, 3]] = torch.tensor([-torch.inf, torch.nan])
    assert make(count=99).select(scores, tokens).tolist() == [False, True, True, False, True, True, True, True]
    assert make(count=2).select(scores, tokens).sum() == 4
    assert not make(ratio=0.1, min_tokens=0).select(scores, tokens).any()
    assert make(ratio=0.1, min_tokens=0).may_keep_nothing
    assert not make(count=1, min_tokens=0).may_keep_nothing
    with pytest.raises(ValueError, match="exactly one of `ratio`, `count` and `flops`"):
        make()


# -- traps of methods.md -----------------------------------------------------------------------------------------


def test_trap_relevance_range_is_of_the_item_not_of_the_batch() -> None:
    """CDPruner's code takes min and max over the whole batch tensor."""
    values, group = torch.tensor([0.0, 1.0, 10.0, 30.0, 20.0]), torch.tensor([0, 0, 1, 1, 1])
    torch.testing.assert_close(min_max(values, group, 2), torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5]))
    tokens = visual_tokens([[(1, 4, 4)], [(1, 4, 4)]])
    scores = random_scores(tokens)
    mine = tokens.sample == 0
    keep = DPP(ratio=0.3).select(scores, tokens)[mine]
    scores[~mine] = scores[~mine] * 100 - 7
    assert torch.equal(DPP(ratio=0.3).select(scores, tokens)[mine], keep)


def test_trap_kept_tokens_stay_in_prompt_order() -> None:
    """DivPrune's paper version kept them in the order of choice; a mask has no such order."""
    tokens = visual_tokens([[(1, 4, 4)]])
    x = F.normalize(tokens.hidden, dim=-1)
    order = max_min(x, [], 6)
    assert order != sorted(order)
    keep = MaxMin(count=6).select(torch.zeros(16), tokens)
    assert torch.equal(tokens.subset(keep).hidden, tokens.hidden[sorted(order)])
