"""Ragged helpers against loops."""

from __future__ import annotations

import pytest
import torch
from factories import visual_tokens
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glimpse_lightning.core.segments import (
    Padding,
    cumsum_before,
    rank_in_group,
    segment_count,
    segment_max,
    segment_mean,
    segment_sum,
)
from glimpse_lightning.core.token_places import index_in_sample

GROUPS = 5
rows = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, GROUPS - 1)), max_size=30)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_against_loops(pairs: list[tuple[int, int]]) -> None:
    values = torch.tensor([float(value) for value, _ in pairs])
    group = torch.tensor([g for _, g in pairs], dtype=torch.int64)
    members = [[i for i, (_, g) in enumerate(pairs) if g == k] for k in range(GROUPS)]
    assert segment_count(group, GROUPS).tolist() == [len(m) for m in members]
    assert segment_count(group, GROUPS, values > 0).tolist() == [sum(pairs[i][0] > 0 for i in m) for m in members]
    assert segment_sum(values, group, GROUPS).tolist() == [sum(pairs[i][0] for i in m) for m in members]
    assert segment_max(values, group, GROUPS).tolist() == [max((pairs[i][0] for i in m), default=0) for m in members]
    means = torch.tensor([sum(pairs[i][0] for i in m) / max(len(m), 1) for m in members])
    torch.testing.assert_close(segment_mean(values, group, GROUPS), means)
    rank = rank_in_group(values, group, GROUPS)
    before = cumsum_before(values.long() + 3, group, GROUPS, rank)
    for m in members:
        best_first = sorted(m, key=lambda i: (-pairs[i][0], i))
        assert [int(rank[i]) for i in best_first] == list(range(len(m)))
        total = 0
        for i in best_first:
            assert before[i] == total
            total += pairs[i][0] + 3


@settings(max_examples=50, deadline=None)
@given(rows)
@example([(0, 0), (0, 0), (1, 0), (1, 0)])  # nothing to move
@example([(1, 0), (1, 0), (0, 0), (0, 0)])
def test_padding(pairs: list[tuple[int, int]]) -> None:
    values = torch.randn(len(pairs), 2)
    label = torch.tensor([g for _, g in pairs], dtype=torch.int64)
    padding = Padding(label * 1000)
    padded = padding.pad(values)
    assert torch.equal(padding.unpad(padded), values)
    for row, name in zip(range(padding.groups), sorted({g for _, g in pairs}), strict=True):
        mask = slice(None) if padding.mask is None else padding.mask[row]
        assert torch.equal(padded[row][mask], values[label == name])
        if padding.mask is not None:
            assert not padded[row][~padding.mask[row]].any()


def test_index_in_sample_survives_pruning() -> None:
    tokens = visual_tokens([[(1, 2, 2), (2, 1, 3)], [(1, 1, 2)]])
    index = index_in_sample(tokens)
    assert index.tolist() == [*range(10), 0, 1]
    keep = torch.arange(12) % 3 == 1
    assert torch.equal(index_in_sample(tokens.subset(keep)), index[keep])


@pytest.mark.parametrize("label", [[0, 0, 2], [2, 0, 0], []])
def test_padding_of_groups_that_may_be_empty(label: list[int]) -> None:
    group = torch.tensor(label, dtype=torch.long)
    values = torch.arange(len(label)).float() + 1
    padding = Padding(group, groups=4)
    padded = padding.pad(values)
    assert padded.shape == (4, 2 if label else 0)
    assert padded.sum(1).tolist() == [float(values[group == number].sum()) for number in range(4)]
    assert torch.equal(padding.unpad(padded), values)
