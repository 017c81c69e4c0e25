"""AttentionRank, FixedRatio and Random."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import FACTS, visual_tokens

from glimpse_lightning.policies import TopK
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import AttentionRank, FixedRatio, Random


def test_attention_rank_is_the_log_of_the_mean_weight() -> None:
    scorer = AttentionRank()
    scorer.build(FACTS, 2)
    probe = scorer.requires.probes["last"]
    assert (probe.layers, probe.query, probe.scale) == ((2,), "last", "log_softmax")
    tokens = visual_tokens([[(1, 1, 1)]], scorer.requires)
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.0]])
    scores = scorer(replace(tokens, probes={"last": weights.log()}))
    assert scores.item() == pytest.approx(math.log(0.15))


@pytest.mark.parametrize(("layer", "after"), [(None, -1), (3, 2), (-1, 2), (7, 9)])
def test_attention_rank_refuses_layers_that_have_not_run(layer: Any, after: int) -> None:
    with pytest.raises(GlimpseError, match="layer between 0 and the stage's last layer"):
        AttentionRank(layer).build(FACTS, after)


def test_fixed_ratio_is_ordered_dithering_on_a_square() -> None:
    tokens = visual_tokens([[(1, 8, 8)]])
    for count, step in ((1, 8), (4, 4), (16, 2)):
        keep = TopK(count).select(FixedRatio()(tokens), tokens)
        expected = [(r, c) for r in range(0, 8, step) for c in range(0, 8, step)]
        assert tokens.position[keep][:, 1:].tolist() == [list(place) for place in expected]


@pytest.mark.parametrize("grid", [(1, 7, 5), (1, 16, 16), (2, 3, 11), (1, 1, 100)])
def test_fixed_ratio_is_even_for_any_count(grid: tuple[int, int, int]) -> None:
    tokens = visual_tokens([[grid]])
    scores = FixedRatio()(tokens)
    assert scores.unique().numel() == len(tokens)
    total = len(tokens)
    for count in range(1, total + 1):
        keep = TopK(count).select(scores, tokens)
        walk = _z_order(tokens.position)
        places = walk[keep].sort().values
        gaps = places.diff(append=places[:1] + total)
        assert gaps.max() <= 2 * total / count + 2, (count, gaps)


def _z_order(position: torch.Tensor) -> torch.Tensor:
    """Index of each token along the walk that FixedRatio takes, by the plain definition."""

    def code(row: int, column: int) -> int:
        return sum(((row >> b & 1) << (2 * b + 1)) | ((column >> b & 1) << (2 * b)) for b in range(8))

    codes = [(t, code(row, column)) for t, row, column in position.tolist()]
    order = sorted(range(len(codes)), key=codes.__getitem__)
    rank = torch.empty(len(codes), dtype=torch.int64)
    rank[torch.tensor(order)] = torch.arange(len(codes))
    return rank


def test_random_depends_on_seed_key_and_place_only() -> None:
    tokens = visual_tokens([[(1, 4, 4)], [(1, 4, 4)]], keys=[5, 6])
    scores = Random()(tokens)
    assert not torch.equal(scores[:16], scores[16:])
    assert not torch.equal(scores, Random(seed=1)(tokens))
    assert torch.equal(Random()(visual_tokens([[(1, 4, 4)]], keys=[6])), scores[16:])
    keep = torch.arange(32) % 2 == 0
    assert torch.equal(Random()(tokens.subset(keep)), scores[keep])


PINNED = [0.30119, 0.929252, 0.964833]


def test_random_draws_are_pinned() -> None:
    """Other versions, devices and machines must draw the same tokens."""
    first = Random(seed=3)(visual_tokens([[(1, 1, 3)]], keys=[2**62 + 1]))
    assert [round(value, 6) for value in first.tolist()] == PINNED


def test_random_is_uniform() -> None:
    scores = torch.cat([Random(seed)(visual_tokens([[(1, 64, 64)]], keys=[seed])) for seed in range(5)])
    assert 0 <= scores.min() < 0.001
    assert 0.999 < scores.max() < 1
    counts = torch.histc(scores, 16, 0, 1)
    expected = len(scores) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi squared of 15 degrees: 1 in 10,000
    pairs = torch.corrcoef(torch.stack([scores[:-1], scores[1:]]))[0, 1]
    assert pairs.abs() < 0.03
