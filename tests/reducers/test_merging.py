"""Merging reducers against plain Python, and the traps of methods.md."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import visual_tokens
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.visual_tokens import VisionKeys, VisualTokens
from glimpse_lightning.policies import DominantContextual, GridCells, Outliers, Policy, Recycled, TopK
from glimpse_lightning.reducers import Drop, MergeNearest, MergeNeighbours, PoolCells, Reducer, merging

BATCH = [[(1, 5, 6)], [], [(1, 2, 2), (2, 4, 3)], [(1, 9, 1)], [(1, 1, 1)]]


def staged(policy: Policy, reducer: Reducer, batch: Any = BATCH, shift: float = 0.0) -> tuple[VisualTokens, Tensor]:
    """Tokens as the engine hands them to a reducer, and the keep mask."""
    tokens = visual_tokens(batch, policy.requires | reducer.requires)
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(3)) + shift
    keep = policy.select(scores, tokens)
    return replace(tokens, scores=scores, targets=policy.merge_targets(scores, keep, tokens)), keep


def check(policy: Policy, reducer: Reducer, rule: Any, shift: float = 0.0) -> None:
    tokens, keep = staged(policy, reducer, shift=shift)
    out = reducer.reduce(tokens.hidden, keep, tokens)
    expected = tokens.hidden.clone()
    for item in range(tokens.num_items):
        mine = (tokens.item == item).nonzero().flatten().tolist()
        for i, state in rule(tokens, keep.tolist(), mine).items():
            expected[i] = state
    torch.testing.assert_close(out, expected[keep])


def came_to(features: Tensor, tokens: VisualTokens, keep: list[bool], mine: list[int], by: str) -> dict[int, list[int]]:
    assert tokens.targets is not None
    targets = [i for i in mine if tokens.targets[i]]
    came: dict[int, list[int]] = {i: [] for i in targets}
    for j in (i for i in mine if not keep[i]):
        if not targets:
            break
        if by == "cosine":
            near = {i: -float(F.cosine_similarity(features[i], features[j], dim=0)) for i in targets}
        else:
            near = {i: float((features[i] - features[j]).norm()) for i in targets}
        came[min(targets, key=lambda i: (near[i], i))].append(j)
    return came


@pytest.mark.parametrize("pairs", [2**24, 1])
@pytest.mark.parametrize("key_layer", [None, -2])
@pytest.mark.parametrize("by", ["cosine", "distance"])
@pytest.mark.parametrize("mode", ["add", "mean"])
@pytest.mark.parametrize("policy", [TopK(5), DominantContextual(ratio=0.5, contextual=0.4)])
def test_merge_nearest(policy: Policy, mode: Any, by: Any, key_layer: int | None, pairs: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(merging, "PAIRS", pairs)
    reducer = MergeNearest(mode, by, key_layer)

    def rule(tokens: VisualTokens, keep: list[bool], mine: list[int]) -> dict[int, Tensor]:
        features = tokens.hidden if key_layer is None else tokens.vision[VisionKeys(key_layer)]
        merged = {}
        for i, came in came_to(features, tokens, keep, mine, by).items():
            if came and mode == "add":
                merged[i] = tokens.hidden[i] + tokens.hidden[came].mean(0)
            elif came:
                merged[i] = tokens.hidden[[i, *came]].mean(0)
        return merged

    check(policy, reducer, rule)


def test_trap_contextual_token_is_target_plus_mean() -> None:
    """VisionZip's contextual token is no mean over the cluster; another port normalises instead."""
    tokens = visual_tokens([[(1, 1, 3)]])
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.0]])
    keep = torch.tensor([True, False, False])
    tokens = replace(tokens, hidden=hidden, scores=torch.zeros(3), targets=keep)
    assert MergeNearest("add").reduce(hidden, keep, tokens).tolist() == [pytest.approx([1.95, 0.05])]
    assert MergeNearest("mean").reduce(hidden, keep, tokens).tolist() == [pytest.approx([2.9 / 3, 0.1 / 3])]


def test_dominant_tokens_take_nothing_up() -> None:
    policy = DominantContextual(ratio=0.5, contextual=0.4)
    tokens, keep = staged(policy, MergeNearest())
    assert tokens.targets is not None
    out = MergeNearest().reduce(tokens.hidden, keep, tokens)
    dominant = ~tokens.targets[keep]
    assert torch.equal(out[dominant], tokens.hidden[keep][dominant])
    assert not torch.equal(out, Drop().reduce(tokens.hidden, keep, tokens))


def test_recycling_merges_the_best_of_the_rest_only() -> None:
    policy, reducer = Recycled(count=4, recycle=0.5, per_cluster=3), MergeNearest("mean", "distance", share=0.5)
    tokens, keep = staged(policy, reducer, [[(1, 6, 6)]])
    assert tokens.scores is not None and tokens.targets is not None
    order = sorted(range(36), key=lambda i: -float(tokens.scores[i]))  # type: ignore[index]
    recycled = order[4 : 4 + 17]
    targets = tokens.targets.nonzero().flatten().tolist()
    assert set(targets) <= set(recycled)
    assert len(targets) == 17 // 3 + 1
    out = torch.zeros_like(tokens.hidden)
    out[keep] = reducer.reduce(tokens.hidden, keep, tokens)
    members: dict[int, list[int]] = {i: [i] for i in targets}
    for j in sorted(set(recycled) - set(targets)):
        members[min(targets, key=lambda i: float((tokens.hidden[i] - tokens.hidden[j]).norm()))].append(j)
    for i, cluster in members.items():
        torch.testing.assert_close(out[i], tokens.hidden[cluster].mean(0))
    for i in order[:4]:
        assert torch.equal(out[i], tokens.hidden[i])


@pytest.mark.parametrize("per", ["item", "sample"])
def test_recycling_of_several_images(per: Any) -> None:
    """A group's clusters merge the tokens that the group recycles; groups are images, or whole samples."""
    policy = Recycled(ratio=0.3, per_cluster=3, per=per)
    reducer = MergeNearest("mean", "distance", share=0.3, per=per)
    tokens, keep = staged(policy, reducer, [[(1, 5, 6), (1, 4, 4)], [(1, 3, 7)]])
    assert tokens.scores is not None and tokens.targets is not None
    out = torch.zeros_like(tokens.hidden)
    out[keep] = reducer.reduce(tokens.hidden, keep, tokens)
    group, total = tokens.groups(per)
    for number, size in enumerate(total.tolist()):
        mine = [i for i in range(len(group)) if group[i] == number]
        order = sorted(mine, key=lambda i: -float(tokens.scores[i]))  # type: ignore[index]
        budget = int(0.3 * size + 1e-9)
        recycled = order[budget : budget + int(0.3 * (size - budget) + 1e-9) + 1]
        targets = [i for i in mine if tokens.targets[i]]
        assert set(targets) <= set(recycled) and len(targets) == len(recycled) // 3 + 1
        members: dict[int, list[int]] = {i: [i] for i in targets}
        for j in sorted(set(recycled) - set(targets)):
            members[min(targets, key=lambda i: float((tokens.hidden[i] - tokens.hidden[j]).norm()))].append(j)
        for i, cluster in members.items():
            torch.testing.assert_close(out[i], tokens.hidden[cluster].mean(0))


@pytest.mark.parametrize("policy", [DominantContextual(0.4), Recycled(0.4), Outliers(factor=0.5)])
def test_merge_targets_are_kept_whoever_chose(policy: Policy) -> None:
    """Masks that RL draws, or an oracle gives, are not what the policy would have said."""
    tokens, own = staged(policy, Drop())
    assert tokens.scores is not None and tokens.targets is not None
    assert tokens.targets.any() and not (tokens.targets & ~own).any()
    drawn = torch.rand(len(tokens), generator=torch.Generator().manual_seed(5)) < 0.5
    assert not (policy.merge_targets(tokens.scores, drawn, tokens) & ~drawn).any()


def test_merge_neighbours_of_an_item_alone() -> None:
    """An item all of whose kept tokens are targets does not know whether another one's are."""
    policy, reducer = Outliers(min_tokens=0, extra=True), MergeNeighbours(neighbours=2)
    flat, peaked = torch.zeros(4), torch.tensor([9.0, *[0.0] * 8])
    outs = []
    for batch, scores in (([[(1, 2, 2)]], flat), ([[(1, 2, 2)], [(1, 3, 3)]], torch.cat([flat, peaked]))):
        tokens = visual_tokens(batch, policy.requires | reducer.requires)
        keep = policy.select(scores, tokens)
        targets = policy.merge_targets(scores, keep, tokens)
        out = reducer.reduce(tokens.hidden, keep, replace(tokens, scores=scores, targets=targets))
        outs.append((out[: int(keep[:4].sum())], tokens.hidden[:4]))
    assert torch.equal(outs[0][1], outs[1][1])
    torch.testing.assert_close(outs[0][0], outs[1][0])


@pytest.mark.parametrize("shift", [0.0, -4.0, -300.0])
@pytest.mark.parametrize("extra", [True, False])
def test_merge_neighbours(extra: bool, shift: float) -> None:
    """Weights are what scores are logarithms of, up to a sum of 1: below it with a shift of -4, and nothing at -300."""
    reducer = MergeNeighbours(neighbours=4, key_layer=-1)
    policy = Outliers(factor=0.5, extra=extra)

    def rule(tokens: VisualTokens, keep: list[bool], mine: list[int]) -> dict[int, Tensor]:
        assert tokens.scores is not None and tokens.targets is not None
        weight = tokens.scores[mine].exp()
        a = dict(zip(mine, weight / max(1.0, float(weight.sum())), strict=True))
        keys = tokens.vision[VisionKeys(-1, "joint")]
        merged = {}
        for i in (i for i in mine if keep[i]):
            if extra and tokens.targets[i]:
                gone = [j for j in mine if not keep[j]] + [i]
                merged[i] = sum(a[j] * tokens.hidden[j] for j in gone)
                continue
            like = {j: float(F.cosine_similarity(keys[i], keys[j], dim=0)) for j in mine if j != i}
            near = sorted(like, key=lambda j: (-like[j], j))[:4]
            merged[i] = tokens.hidden[i] + sum(a[j] * tokens.hidden[j] for j in near)
        return merged  # type: ignore[return-value]

    check(policy, reducer, rule, shift)


def test_pooling_is_average_pooling() -> None:
    tokens = visual_tokens([[(1, 4, 6)], [(1, 3, 3)]])
    keep = GridCells(2).select(torch.zeros(len(tokens)), tokens)
    out = PoolCells(2).reduce(tokens.hidden, keep, tokens)
    image = tokens.hidden[:24].view(4, 6, -1).permute(2, 0, 1)
    torch.testing.assert_close(out[:6], F.avg_pool2d(image, 2).flatten(1).T)
    odd = tokens.hidden[24:].view(3, 3, -1).permute(2, 0, 1)
    pooled = F.avg_pool2d(odd, 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(out[6:], pooled.flatten(1).T)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`mode` to be 'add' or 'mean'"):
        MergeNearest("sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`size` to be at least 1"):
        PoolCells(0)
