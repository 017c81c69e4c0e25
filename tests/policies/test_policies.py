"""Properties of keep rules: floor, cap, determinism, ties, independence of batch mates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from factories import Grid, visual_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies import KeepRatio, Policy, Threshold, TopK, TopP
from glimpse_lightning.runtime.errors import GlimpseError

grids = st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4))
batches = st.lists(st.lists(grids, max_size=3), min_size=1, max_size=4)
ratios = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.111, 0.5, 1.0]))
pers = st.sampled_from(["sample", "item"])
policies = st.one_of(
    st.builds(Threshold, st.floats(0, 1, width=32), st.just("sigmoid"), ratios, st.integers(0, 4), st.just(()), pers),
    st.builds(Threshold, st.floats(-3, 3, width=32), st.just("raw"), ratios, st.integers(0, 4), st.just(()), pers),
    st.builds(TopK, st.integers(0, 9), pers),
    st.builds(KeepRatio, st.floats(0, 1), pers, st.integers(0, 3)),
    st.builds(TopP, st.floats(0, 1), pers, st.integers(0, 3)),
)


def scores_for(tokens: VisualTokens, ties: bool, seed: int) -> Tensor:
    """Scores that depend on the sample's key alone; few distinct values where ties are wanted."""
    parts = [torch.zeros(0)]
    for index, key in enumerate(tokens.key.tolist()):
        count = int((tokens.sample == index).sum())
        values = torch.randn(count, generator=torch.Generator().manual_seed(key + seed)) * 2
        parts.append(values.round() if ties else values)
    return torch.cat(parts)


def expected(policy: Policy, scores: list[float]) -> list[int]:
    """The keep rule written down once more, for one group, in plain Python."""
    n = len(scores)
    order = sorted(range(n), key=lambda i: (-scores[i], i))
    if isinstance(policy, TopK):
        return sorted(order[: policy.count])
    if isinstance(policy, KeepRatio):
        return sorted(order[: max(int(policy.ratio * n + 1e-9), policy.min_tokens)])
    assert isinstance(policy, Threshold)
    values = torch.tensor(scores).sigmoid().tolist() if policy.scale == "sigmoid" else scores
    keep = {i for i in range(n) if values[i] > policy.threshold}
    if policy.max_ratio is not None and n and len(keep) / n > policy.max_ratio:
        keep = set(order[: int(policy.max_ratio * n)])
    if len(keep) < policy.min_tokens:
        keep |= set(order[: policy.min_tokens])
    return sorted(keep)


@settings(max_examples=150, deadline=None)
@given(batches, policies, st.booleans(), st.integers(0, 3))
def test_same_as_the_rule_in_plain_python(batch: list[list[Grid]], policy: Any, ties: bool, seed: int) -> None:
    tokens = visual_tokens(batch)
    scores = scores_for(tokens, ties, seed)
    keep = policy.select(scores, tokens)
    assert keep.dtype == torch.bool
    assert keep.shape == scores.shape
    group, total = tokens.groups(policy.per)
    for index in range(len(total)):
        mine = (group == index).nonzero().flatten()
        kept = keep[mine].nonzero().flatten().tolist()
        if not isinstance(policy, TopP):
            assert kept == expected(policy, scores[mine].tolist())
        if not policy.may_keep_nothing and len(mine):
            assert kept


@settings(max_examples=100, deadline=None)
@given(batches, policies, st.booleans(), st.integers(0, 3))
def test_independent_of_batch_mates(batch: list[list[Grid]], policy: Any, ties: bool, seed: int) -> None:
    tokens = visual_tokens(batch)
    together = policy.select(scores_for(tokens, ties, seed), tokens)
    assert torch.equal(together, policy.select(scores_for(tokens, ties, seed), tokens))
    alone = []
    for sample, key in zip(batch, tokens.key.tolist(), strict=True):
        mine = visual_tokens([sample], keys=[key])
        alone.append(policy.select(scores_for(mine, ties, seed), mine))
    assert torch.equal(together, torch.cat(alone))


@settings(max_examples=60, deadline=None)
@given(batches, st.floats(0.01, 1), st.integers(0, 3), st.integers(0, 3))
def test_top_p_is_the_smallest_set_that_reaches_p(batch: list[list[Grid]], p: float, floor: int, seed: int) -> None:
    tokens = visual_tokens(batch)
    scores = scores_for(tokens, False, seed)
    keep = TopP(p, min_tokens=floor).select(scores, tokens)
    for index in range(len(batch)):
        mine = tokens.sample == index
        weight = scores[mine].double().softmax(0)
        kept = keep[mine]
        if not len(weight):
            continue
        assert weight[kept].sum() >= p - 1e-6
        if kept.sum() > max(floor, 1):
            assert weight[kept].sum() - weight[kept].min() < p + 1e-6


@pytest.mark.parametrize("policy", [Threshold(0.0, "raw"), TopK(9), KeepRatio(1.0), TopP(1.0)])
def test_minus_infinity_and_nan(policy: Policy) -> None:
    tokens = visual_tokens([[(1, 1, 5)]])
    scores = torch.tensor([1.0, -torch.inf, 0.5, -torch.inf, 0.1])
    assert policy.select(scores, tokens).tolist() == [True, False, True, False, True]
    assert not policy.select(torch.full((5,), -torch.inf), tokens).any()
    assert not Threshold().select(torch.full((5,), torch.nan), tokens).any()


def test_nan_ranks_last() -> None:
    tokens = visual_tokens([[(1, 1, 3)]])
    assert TopK(2).select(torch.tensor([torch.nan, 1.0, 0.0]), tokens).tolist() == [False, True, True]


def test_top_p_stops_once_p_is_reached() -> None:
    assert TopP(0.5).select(torch.zeros(4), visual_tokens([[(1, 2, 2)]])).tolist() == [True, True, False, False]


def test_top_p_where_probabilities_vanish_or_are_unknown() -> None:
    scores, tokens = torch.tensor([0.0, -10.0, torch.nan, -120.0]), visual_tokens([[(1, 1, 4)]])
    assert TopP(1.0).select(scores, tokens).tolist() == [True, True, False, True]
    assert TopP(0.5).select(scores, tokens).tolist() == [True, False, False, False]


def test_keep_all() -> None:
    tokens = visual_tokens([[(1, 3, 3)], [(1, 2, 2), (1, 1, 3)]])
    scores = scores_for(tokens, False, 0)
    for policy in (KeepRatio(1.0), TopP(1.0), TopK(99), Threshold(-99.0, "raw")):
        assert policy.select(scores, tokens).all()


def test_ratio_is_of_the_tokens_before_any_pruning() -> None:
    tokens = visual_tokens([[(1, 2, 5)]])
    left = tokens.subset(torch.tensor([True] * 6 + [False] * 4))
    assert KeepRatio(0.5).select(torch.arange(6.0), left).tolist() == [False] + [True] * 5
    assert Threshold(max_ratio=0.2).select(torch.arange(6.0) + 1, left).tolist() == [False] * 4 + [True] * 2


def test_ratio_forgives_binary_fractions() -> None:
    assert KeepRatio(0.29).select(torch.arange(100.0), visual_tokens([[(1, 10, 10)]])).sum() == 29


def test_saturated_sigmoid_still_ranks() -> None:
    tokens = visual_tokens([[(1, 1, 4)]])
    keep = Threshold(max_ratio=0.5).select(torch.tensor([40.0, 50.0, 60.0, 45.0]), tokens)
    assert keep.tolist() == [False, True, True, False]


def test_threshold_is_strict() -> None:
    assert not Threshold(min_tokens=0).select(torch.zeros(4), visual_tokens([[(1, 2, 2)]])).any()


def test_anchors_come_last() -> None:
    tokens = visual_tokens([[(1, 2, 3)]])
    policy = Threshold(max_ratio=0.2, anchors=("tl", "br"))
    assert policy.select(torch.tensor([0.0, 3, 0, 0, 1, 0]), tokens).tolist() == [True, True, False, False, False, True]
    with pytest.raises(GlimpseError, match="one image per sample"):
        policy.select(torch.zeros(2), visual_tokens([[(1, 1, 1), (1, 1, 1)]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold(1.5), "`threshold` to be a fraction between 0 and 1, but got 1.5"),
        (lambda: Threshold(scale="logit"), "`scale` to be 'sigmoid' or 'raw', but got 'logit'"),  # type: ignore[arg-type]
        (lambda: Threshold(anchors=("top",)), "`anchors` to be 'tl'"),  # type: ignore[arg-type]
        (lambda: TopK(-1), "`count` to be an integer of at least 0 tokens, but got -1"),
        (lambda: TopK(1.5), "`count` to be an integer"),  # type: ignore[arg-type]
        (lambda: KeepRatio(11), "`ratio` to be a fraction between 0 and 1, but got 11"),
        (lambda: KeepRatio(0.1, per="image"), "`per` to be 'sample' or 'item'"),  # type: ignore[arg-type]
        (lambda: TopP(-0.1), "`p` to be a fraction"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "policy", [Threshold(min_tokens=0), TopK(0), KeepRatio(0.5, min_tokens=0), TopP(0.0, min_tokens=0)]
)
def test_may_keep_nothing(policy: Policy) -> None:
    assert policy.may_keep_nothing


@pytest.mark.parametrize("policy", [Threshold(), Threshold(min_tokens=0, anchors=("tl",)), TopK(1), TopP(0.1)])
def test_keeps_something(policy: Policy) -> None:
    assert not policy.may_keep_nothing
