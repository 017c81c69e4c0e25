"""Keep rules of published methods against plain Python, one group at a time, and the traps of methods.md."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from factories import FACTS, visual_tokens
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.visual_tokens import VisionAttention, VisualTokens
from glimpse_lightning.policies import (
    DART,
    BipartiteMatching,
    CropRatio,
    DominantContextual,
    GridCells,
    HiPrune,
    LocalGlobal,
    LogisticRatio,
    Outliers,
    Policy,
    Recycled,
    VisPruner,
)
from glimpse_lightning.policies import greedy as greedy_module
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.vision_text_rank import information

BATCH = [[(1, 5, 6)], [], [(1, 2, 2), (2, 4, 3)], [(1, 9, 1)], [(1, 1, 1)]]


def drawn(policy: Policy, batch: Any = BATCH) -> tuple[VisualTokens, Tensor]:
    tokens = visual_tokens(batch, policy.requires)
    return tokens, torch.randn(len(tokens), generator=torch.Generator().manual_seed(3))


def best_first(values: list[float], among: Any) -> list[int]:
    return sorted(among, key=lambda i: (-values[i], i))


def check(policy: Any, rule: Any, group: str = "item") -> None:
    """``rule(tokens, scores, mine)`` names the kept of the packed indices ``mine`` of one group."""
    tokens, scores = drawn(policy)
    keep = policy.select(scores, tokens)
    labels = getattr(tokens, group)
    for label in labels.unique().tolist():
        mine = (labels == label).nonzero().flatten().tolist()
        assert [i for i in mine if keep[i]] == sorted(rule(tokens, scores.tolist(), mine)), (group, label)


def floor(share: float, total: int) -> int:
    return int(share * total + 1e-9)


# -- VisionZip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_dominant_and_contextual(ratio: float) -> None:
    policy = DominantContextual(ratio=ratio, contextual=0.3)

    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        budget = max(1, floor(ratio, len(mine)))
        contextual = floor(0.3, budget)
        dominant = best_first(scores, mine)[: budget - contextual]
        rest = [i for i in mine if i not in dominant]
        step = max(1, len(rest) // max(contextual, 1))
        return dominant + rest[::step][:contextual]

    check(policy, rule)
    tokens, scores = drawn(policy)
    keep = policy.select(scores, tokens)
    targets = policy.merge_targets(scores, keep, tokens)
    for item in range(tokens.num_items):
        size = int((tokens.item == item).sum())
        assert targets[tokens.item == item].sum() == floor(0.3, max(1, floor(ratio, size)))


def test_visionzip_published_counts() -> None:
    for count, contextual in ((192, 30), (128, 20), (64, 10)):
        tokens, scores = drawn(policy := DominantContextual(count=count), [[(1, 24, 24)]])
        keep = policy.select(scores, tokens)
        assert keep.sum() == count
        assert policy.merge_targets(scores, keep, tokens).sum() == contextual


# -- PruMerge ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [False, True])
@pytest.mark.parametrize("extra", [False, True])
def test_outliers(stride: bool, extra: bool) -> None:
    policy = Outliers(factor=0.5, stride=stride, extra=extra, min_tokens=1)

    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        weight = np.exp(np.array([scores[i] for i in mine], dtype=np.float32))
        first, third = np.percentile(weight, 25), np.percentile(weight, 75)
        keep = [i for i, w in zip(mine, weight, strict=True) if w > third + 0.5 * (third - first)]
        keep = keep or best_first(scores, mine)[:1]
        if stride:
            step = max(1, int(int(len(mine) / len(keep)) / 3))
            keep = sorted({*keep, *mine[:-1:step]})
        rest = best_first(scores, [i for i in mine if i not in keep])
        return keep + (rest[:1] if extra else [])

    check(policy, rule)


def test_outliers_are_adaptive() -> None:
    tokens = visual_tokens([[(1, 10, 10)], [(1, 10, 10)]])
    scores = torch.zeros(200)
    scores[:7] = 5.0
    scores[100:130] = 5.0
    keep = Outliers(extra=False).select(scores, tokens)
    assert keep[:100].sum() == 7
    assert keep[100:].sum() == 1  # 30 of 100 reach the third quartile: nothing stands out, but the floor


# -- VisPruner and ToMe ------------------------------------------------------------------------------------------


def thinned(x: Tensor, queue: list[int], target: int, step: int, reorder: bool = False) -> list[int]:
    unit = F.normalize(x, dim=-1)
    while len(queue) > max(target, 1):
        even, odd = queue[::2], queue[1::2]
        likeness = {i: max(float(unit[i] @ unit[j]) for j in odd) for i in even}
        drop = min(len(queue) - max(target, 1), len(even), step)
        likest = sorted(even, key=lambda i: (-likeness[i], even.index(i)))
        queue = likest[drop:] + odd if reorder else [i for i in queue if i not in likest[:drop]]
    return queue if target else []


@pytest.mark.parametrize("pairs", [2**24, 1])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.9])
def test_vis_pruner(ratio: float, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy_module, "PAIRS", pairs)

    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        budget = max(1, floor(ratio, len(mine)))
        order = best_first(scores, mine)
        important = order[: floor(0.5, budget)]
        return important + thinned(tokens.hidden, order[len(important) :], budget - len(important), 3, reorder=True)

    check(VisPruner(ratio=ratio, step=3), rule, "sample")


@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.9])
def test_bipartite_matching(ratio: float, rounds: int) -> None:
    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        budget = max(1, floor(ratio, len(mine)))
        return thinned(tokens.hidden, mine, budget, -(-max(len(mine) - budget, 1) // rounds))

    check(BipartiteMatching(ratio=ratio, rounds=rounds), rule, "sample")


def test_thinning_ends_with_equal_or_broken_states() -> None:
    tokens = visual_tokens([[(1, 3, 3)]])
    for value in (0.0, 1.0, math.nan):
        same = replace(tokens, hidden=torch.full_like(tokens.hidden, value))
        assert VisPruner(count=4, step=1).select(torch.zeros(9), same).sum() == 4
        assert BipartiteMatching(count=2).select(torch.zeros(9), same).sum() == 2


# -- HiPrune -----------------------------------------------------------------------------------------------------


def test_hi_prune() -> None:
    policy = HiPrune(ratio=0.6, anchors=0.7, object_layer=1)

    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        budget = max(1, floor(0.6, len(mine)))
        attention = tokens.vision[VisionAttention(1)][:, 0].tolist()
        anchors = best_first(attention, mine)[: round(budget * 0.7 / 5)]
        _, _, w = tokens.grid[tokens.item[mine[0]]].tolist()
        first = set(anchors)
        for i in anchors:
            first |= {mine[min(max(i - mine[0] + step, 0), len(mine) - 1)] for step in (-1, 1, -w, w)}
        rest = [i for i in mine if i not in first]
        return [*best_first(scores, first), *best_first(scores, rest)][:budget]

    check(policy, rule)


def test_trap_neighbours_wrap_at_row_ends() -> None:
    """HiPrune's code takes i - 1 and i + 1, whatever the row; clamped to the image."""
    policy = HiPrune(count=5, anchors=1.0, object_layer=0)
    tokens, _ = drawn(policy, [[(1, 4, 4)]])

    def kept(anchor: int) -> list[int]:
        attention = torch.zeros(16, 1)
        attention[anchor] = 1
        picture = replace(tokens, vision={VisionAttention(0): attention})
        return policy.select(-torch.arange(16.0), picture).nonzero().flatten().tolist()

    assert kept(7) == [3, 6, 7, 8, 11]  # 8 lies at the other end of the next row
    assert kept(0)[:3] == [0, 1, 2] and 4 in kept(0)  # -1 and -4 clamp to 0


# -- HoloV -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("per", ["item", "sample"])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.9])
def test_crop_ratio(ratio: float, per: Any, fill: bool) -> None:
    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        budget = max(1, floor(ratio, len(mine)))
        items: dict[int, list[int]] = {}
        for i in mine:
            items.setdefault(int(tokens.item[i]), []).append(i)
        crops = [crop.tolist() for item in items.values() for crop in torch.tensor(item).tensor_split(4) if len(crop)]
        weight = [sum(max(scores[i], 0.0) for i in crop) / len(crop) for crop in crops]
        parts = [floor(w / (sum(weight) or 1.0), budget) for w in weight]
        for c in best_first(weight, range(len(crops)))[: budget - sum(parts)]:
            parts[c] += 1
        kept = [i for crop, part in zip(crops, parts, strict=True) for i in best_first(scores, crop)[:part]]
        return (kept + best_first(scores, [i for i in mine if i not in kept]))[:budget] if fill else kept

    check(CropRatio(ratio=ratio, crops=4, per=per, fill=fill), rule, per)


def test_crop_ratio_meets_the_budget() -> None:
    """Where it is told to; else what a crop is too short for is lost, as in HoloV's code."""
    tokens = visual_tokens([[(1, 16, 16)]])
    crop, policy = torch.arange(256) // 16, CropRatio(count=20, fill=True)
    third = torch.where(crop == 3, 1.0, 0.0)
    assert torch.bincount(crop[policy.select(third, tokens)], minlength=16).tolist() == [4, 0, 0, 16, *[0] * 12]
    assert CropRatio(count=20).select(third, tokens).sum() == 16
    no_weight = policy.select(torch.zeros(256), tokens)
    assert torch.bincount(crop[no_weight], minlength=16).tolist() == [5, *[1] * 15]


def test_trap_crops_are_ranges_of_indices() -> None:
    """HoloV's "spatial crops" are flat index ranges: with 2 crops of a 4 x 4 image, the upper and the lower half."""
    tokens = visual_tokens([[(1, 4, 4)]])
    scores = torch.zeros(16)
    scores[8:] = 1.0
    assert CropRatio(count=8, crops=2).select(scores, tokens).nonzero().flatten().tolist() == list(range(8, 16))
    keep = CropRatio(count=4, crops=2).select(scores + 1, tokens)  # means 1 and 2
    assert [int(keep[:8].sum()), int(keep[8:].sum())] == [1, 3]


# -- DART --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_dart(ratio: float) -> None:
    policy = DART(ratio=ratio, image_pivots=2, text_pivots=3)

    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        assert tokens.keys is not None and tokens.text is not None
        assert tokens.text_keys is not None and tokens.text_sample is not None
        budget = max(1, floor(ratio, len(mine)))
        norm = tokens.keys.abs().sum(-1).tolist()
        pivots = best_first(norm, mine)[: min(2, budget)]
        words = (tokens.text_sample == tokens.sample[mine[0]]).nonzero().flatten().tolist()
        text = best_first(tokens.text_keys.abs().sum(-1).tolist(), words)[:3]
        states = [*(tokens.hidden[i] for i in pivots), *(tokens.text[i] for i in text)]
        kept, left = list(pivots), budget - len(pivots)
        for state in states:
            share = min(math.ceil(left / len(states)), budget - len(kept))
            cosine = {i: float(F.cosine_similarity(tokens.hidden[i], state, dim=0)) for i in mine}
            kept += sorted((i for i in mine if i not in kept), key=lambda i: (cosine[i], i))[:share]
        assert len(kept) == budget
        return kept

    check(policy, rule, "sample")


# -- VScan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.2, 0.7])
def test_local_and_global(ratio: float) -> None:
    policy = LocalGlobal(ratio=ratio, window=2, shallow_layer=0)

    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        budget = max(1, floor(ratio, len(mine)))
        shallow = tokens.attention(VisionAttention(0, queries="class")).tolist()
        windows: dict[Any, list[int]] = {}
        for i in best_first(shallow, mine):
            t, row, column = tokens.position[i].tolist()
            windows.setdefault((int(tokens.item[i]), t, row // 2, column // 2), []).append(i)
        turns = sorted((place, -shallow[i], i) for window in windows.values() for place, i in enumerate(window))
        local = [i for *_, i in turns[: floor(0.5, budget)]]
        return local + best_first(scores, [i for i in mine if i not in local])[: budget - len(local)]

    check(policy, rule, "sample")


def test_every_window_gets_its_share() -> None:
    tokens, scores = drawn(policy := LocalGlobal(count=32, local=1.0), [[(1, 24, 24)]])
    keep = policy.select(scores, tokens)
    window = tokens.position[:, 1] // 6 * 4 + tokens.position[:, 2] // 6
    assert torch.bincount(window[keep], minlength=16).tolist() == [2] * 16


# -- SparseVLM ---------------------------------------------------------------------------------------------------


def peaks(x: Tensor, members: list[int], count: int, k: int) -> list[int]:
    scale = x.shape[1] ** 0.5
    d = {(i, j): float((x[i] - x[j]).norm()) / scale for i in members for j in members}
    density = {}
    for i in members:
        near = sorted(d[i, j] for j in members)[: min(k, len(members))]
        density[i] = math.exp(-sum(v * v for v in near) / len(near))
    value = {}
    for i in members:
        denser = [d[i, j] for j in members if density[j] > density[i]]
        value[i] = (min(denser) if denser else max(d.values())) * density[i]
    return sorted(members, key=lambda i: (-value[i], i))[:count]


@pytest.mark.parametrize("pairs", [2**24, 1])
@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_recycled(ratio: float, pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy_module, "PAIRS", pairs)
    policy = Recycled(ratio=ratio, recycle=0.5, per_cluster=3)

    def rule(tokens: VisualTokens, scores: list[float], mine: list[int]) -> list[int]:
        budget = max(1, floor(ratio, len(mine)))
        order = best_first(scores, mine)
        count = floor(0.5, len(mine) - budget) + 1
        members = order[budget : budget + count]
        clusters = count // 3 + 1
        return order[:budget] + (peaks(tokens.hidden, sorted(members), clusters, clusters) if members else [])

    check(policy, rule, "sample")


def test_trap_recycled_tokens_are_on_top_of_the_budget() -> None:
    """SparseVLM's token lists exclude the cluster tokens: of 576, 300 + ((82 + 1) // 10 + 1) are really kept."""
    tokens, scores = drawn(policy := Recycled(count=300), [[(1, 24, 24)]])
    keep = policy.select(scores, tokens)
    assert keep.sum() == 300 + (floor(0.3, 276) + 1) // 10 + 1
    assert policy.merge_targets(scores, keep, tokens).sum() == 9


@pytest.mark.parametrize(("settings", "kept"), [({}, 5), ({"per_cluster": 1}, 5), ({"recycle": 0.0}, 4)])
def test_recycled_at_its_edges(settings: dict[str, Any], kept: int) -> None:
    """One token beyond the budget is a cluster of its own, whatever a cluster holds; a share of 0 recycles none."""
    tokens, scores = drawn(policy := Recycled(count=4, **settings), [[(1, 1, 5)]])
    assert policy.select(scores, tokens).sum() == kept


# -- AutoPrune ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retention", [0.2, 0.35, 0.6])
@pytest.mark.parametrize("information", [0.0, 0.5, 1.3])
def test_logistic_schedule_meets_its_budget(retention: float, information: float) -> None:
    after, layers = [1, 7, 15, 23], 32
    ratios = LogisticRatio(0, after, retention, midpoint=0.3).ratios(layers, torch.tensor([information, 5.0]))
    steep, flat = ratios.T.tolist()
    assert steep == sorted(steep, reverse=True)
    for shares in (steep, flat):
        kept = [1.0] * layers
        for layer, ratio in zip(after, shares, strict=True):
            kept[layer + 1 :] = [ratio] * (layers - layer - 1)
        assert sum(kept) / layers == pytest.approx(retention, abs=1e-6)
    assert flat == pytest.approx([flat[0]] * 4)  # k = max(0.4 - 0.2 * 5, 0)
    if max(steep) < 1:
        k = 0.4 - 0.2 * information
        curve = [0.75 / (1 + math.exp(k * (layer - 0.3 * layers - k))) for layer in after]
        assert [r / steep[0] for r in steep] == pytest.approx([c / curve[0] for c in curve])


def test_logistic_schedule_that_reaches_its_budget_last() -> None:
    ratios = LogisticRatio(0, [0, 1, 3, 5], 0.05, reach="last").ratios(8, torch.tensor([0.0, 1.0, 9.0]))
    assert ratios[-1].tolist() == pytest.approx([0.05] * 3)
    assert ratios[0, 0] > ratios[0, 1] > ratios[0, 2] == pytest.approx(0.05)
    assert LogisticRatio(0, [0, 5], 0.9, reach="last").ratios(8, torch.zeros(1)).max() == 1


def test_logistic_schedule_follows_each_samples_information() -> None:
    policy = LogisticRatio(1, [0, 3], 0.5)
    tokens = visual_tokens([[(1, 10, 10)], [], [(1, 10, 10), (1, 5, 5)]], policy.requires)
    heads = FACTS.num_heads
    shown = torch.where(tokens.sample[:, None] == 0, 0.1, 0.6).expand(-1, heads)
    tokens = replace(tokens, probes={"information": shown})
    bits = information(tokens)
    assert bits.tolist() == pytest.approx([0.1 * heads / math.log(2), 0.0, 0.6 * heads / math.log(2)])
    scores = torch.randn(len(tokens), generator=torch.Generator().manual_seed(3))
    keep = policy.select(scores, tokens)
    ratios = policy.ratios(FACTS.num_layers, bits)[1].tolist()
    assert ratios[0] != ratios[2]
    for sample, size in ((0, 100), (2, 125)):
        mine = tokens.sample == sample
        assert keep[mine].sum() == floor(ratios[sample], size)
        best = best_first(scores.tolist(), mine.nonzero().flatten().tolist())[: floor(ratios[sample], size)]
        assert keep[mine].nonzero().flatten().tolist() == [i - best_start(mine) for i in sorted(best)]
    by_item = LogisticRatio(1, [0, 3], 0.5, per="item").select(scores, tokens)
    assert by_item[-25:].sum() == floor(ratios[2], 25)
    later = tokens.subset(keep)  # an earlier stage has dropped some: the information is still the whole image's
    assert information(later).tolist() == pytest.approx(bits.tolist())


def best_start(mine: Tensor) -> int:
    return int(mine.nonzero()[0])


def test_logistic_schedule_complains() -> None:
    with pytest.raises(GlimpseError, match=r"at least 0\.500.*reach: last"):
        LogisticRatio(0, [2, 3], 0.3).ratios(6, torch.zeros(1))
    with pytest.raises(ValueError, match="to rise"):
        LogisticRatio(0, [3, 2], 0.3)
    with pytest.raises(ValueError, match="index into it"):
        LogisticRatio(2, [2, 3], 0.3)
    with pytest.raises(GlimpseError, match=r"too shallow: of its 4 .* the 4 stages would prune after 0, 0, 1, 2"):
        LogisticRatio(0, [0.125, 0.25, 0.5, 0.75], 0.3).number_layers(replace(FACTS, num_layers=4))


# -- pooling -----------------------------------------------------------------------------------------------------


def test_grid_cells() -> None:
    tokens = visual_tokens([[(1, 3, 5)], [(2, 2, 2)]])
    keep = GridCells(2).select(torch.zeros(len(tokens)), tokens)
    corners = [
        [t, r, c]
        for n, h, w in ((1, 3, 5), (2, 2, 2))
        for t in range(n)
        for r in range(0, h, 2)
        for c in range(0, w, 2)
    ]
    assert tokens.position[keep].tolist() == corners


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisPruner(ratio=0.1, step=0), "`step` to be at least 1"),
        (lambda: BipartiteMatching(ratio=0.1, rounds=0), "`rounds` to be at least 1"),
        (lambda: CropRatio(ratio=0.1, crops=0), "`crops` to be at least 1"),
        (lambda: DART(ratio=0.1, image_pivots=0, text_pivots=0), "at least one of"),
        (lambda: LocalGlobal(ratio=0.1, window=0), "`window` to be at least 1"),
        (lambda: Recycled(ratio=0.1, per_cluster=0), "`per_cluster` to be at least 1"),
        (lambda: GridCells(0), "`size` to be at least 1"),
        (lambda: HiPrune(ratio=0.1, anchors=2), "`anchors` to be a fraction"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
