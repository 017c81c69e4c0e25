"""Methods select what their authors' own code selects, on the tensors of ``tests/golden/methods/``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import visual_tokens
from method_goldens import cases, settings
from torch import Tensor

import glimpse_lightning.policies as p
import glimpse_lightning.reducers as r
import glimpse_lightning.scorers as s
from glimpse_lightning.backbones.vision_attention import class_row
from glimpse_lightning.core.visual_tokens import VisionAttention, VisionKeys, VisionPixels, VisualTokens
from glimpse_lightning.objectives.differentiable_top_k import soft_top_k
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.recycled import recycled_count
from glimpse_lightning.policies.scale import min_max

SIZES = (64, 80, 144, 160, 256, 240, 400, 576)
"""Numbers of image tokens in the files."""


def settings_of(name: str) -> list[pytest.ParameterSet]:
    """Every case and setting of a method's file, as ``(case, setting)``."""
    return [
        pytest.param(case, setting, id=f"{number}/{key}")
        for number, case in cases(name).items()
        for key, setting in settings(case).items()
    ]


def one_image(height: int, width: int) -> VisualTokens:
    return visual_tokens([[(1, height, width)]])


def chosen(keep: Tensor) -> list[int]:
    return keep.nonzero()[:, 0].tolist()


def in_order(
    policy: Callable[..., Policy], scores: Tensor, tokens: VisualTokens, order: Tensor, **arguments: Any
) -> bool:
    """Whether a greedy policy adds tokens in this order as its budget grows, as some of its budgets tell."""
    return all(
        chosen(policy(count=count, **arguments).select(scores, tokens)) == sorted(order[:count].tolist())
        for count in {*range(1, len(order), 1 + len(order) // 4), len(order)}
    )


@pytest.mark.parametrize(("case", "setting"), settings_of("fastervlm"))
def test_faster_vlm(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    attention = case["in/attention"].mean(0)
    tokens = replace(one_image(1, len(attention)), vision={VisionAttention(-2): attention[:, None]})
    keep = p.TopK(int(setting["budget"])).select(s.VisionRank()(tokens), tokens)
    assert chosen(keep) == sorted(setting["order"].tolist())
    assert torch.equal(s.VisionRank()(tokens).argsort(descending=True)[: keep.sum()], setting["order"])


# -- HiPrune -----------------------------------------------------------------------------------------------------


def hi_prune(tokens: VisualTokens, middle: Tensor, deep: Tensor, setting: dict[str, Tensor]) -> list[int]:
    vision = {VisionAttention(8): middle[:, None], VisionAttention(-1): deep[:, None]}
    policy = p.HiPrune(count=int(setting["budget"]), anchors=float(setting["alpha"]))
    tokens = replace(tokens, vision=vision)
    return chosen(policy.select(s.VisionRank(-1, queries="all")(tokens), tokens))


@pytest.mark.parametrize(("case", "setting"), settings_of("hiprune"))
def test_hi_prune(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    tokens = one_image(*case["in/grid"].tolist())
    kept = hi_prune(tokens, case["in/object_attention"], case["in/deep_attention"], setting)
    assert kept == sorted(setting["kept"].tolist())
    assert {*setting["first"].tolist()} <= {*kept}


@pytest.mark.parametrize(("case", "setting"), settings_of("hiprune_llava"))
def test_hi_prune_with_a_class_token(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    """The class token is among the queries; its own column is left out, as the backbone leaves it out."""
    kept = hi_prune(one_image(24, 24), case["in/object_attention"][1:], case["in/deep_attention"][1:], setting)
    assert kept == sorted(setting["kept"].tolist())


# -- VisionZip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "setting"), settings_of("visionzip"))
def test_vision_zip(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    attention, hidden, keys = (case[f"in/{name}"] for name in ("class_attention", "hidden", "metric"))
    row = VisionAttention(-2, queries="class")
    vision = {row: attention.mean(0)[1:, None], VisionKeys(-2): keys[1:]}
    tokens = replace(one_image(1, len(hidden) - 1), vision=vision, hidden=hidden[1:])
    contextual, dominant = int(setting["contextual_num"]), int(setting["dominant_num"])
    policy = p.DominantContextual(count=contextual + dominant, contextual=contextual / (contextual + dominant))
    scores = s.VisionRank()(tokens)
    keep = policy.select(scores, tokens)
    targets = policy.merge_targets(scores, keep, tokens)
    assert chosen(targets) == setting["contextual_targets"].tolist()
    assert chosen(keep & ~targets) == sorted(setting["dominant"].tolist())
    out = r.MergeNearest("add", key_layer=-2).reduce(tokens.hidden, keep, replace(tokens, targets=targets))
    torch.testing.assert_close(out[targets[keep]], setting["contextual"], atol=1e-5, rtol=0)
    assert torch.equal(out[~targets[keep]], tokens.hidden[keep & ~targets])


# -- HoloV -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "setting"), settings_of("holov"))
def test_holo_v(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    """Where a crop is too short for its part the authors have zeros (-1): two, and one, in two of these settings."""
    attention = VisionAttention(-2, queries="class")
    tokens = one_image(1, len(case["in/attention"]))
    tokens = replace(tokens, hidden=case["in/features"], vision={attention: case["in/attention"][:, None]})
    keep = p.CropRatio(count=int(setting["budget"])).select(s.Holistic()(tokens), tokens)
    positions = setting["positions"]
    assert chosen(keep) == sorted(positions[positions >= 0].tolist())


# -- VisPruner ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "setting"), settings_of("vispruner"))
def test_vis_pruner(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    attention = case["in/attention"].mean(0)
    row = VisionAttention(-2, queries="class")
    tokens = replace(one_image(1, len(attention)), hidden=case["in/features"], vision={row: attention[:, None]})
    policy = p.VisPruner(count=int(setting["budget"]), important=float(setting["important_ratio"]))
    kept = chosen(policy.select(s.VisionRank()(tokens), tokens))
    assert kept == sorted([*setting["important"].tolist(), *setting["diverse"].tolist()])


# -- VScan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "setting"), settings_of("vscan_stage1"))
def test_v_scan(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    """Of a budget of 100 the authors keep 3 a window and 50; here two windows have a fourth."""
    shallow, deep = case["in/attention_block5"], case["in/attention_block_minus2"]
    vision = {VisionAttention(i, queries="class"): row[:, None] for i, row in ((5, shallow), (-2, deep))}
    tokens = replace(one_image(24, 24), hidden=case["in/features"], vision=vision)
    keep = p.LocalGlobal(count=int(setting["budget"])).select(s.VisionRank()(tokens), tokens)
    theirs = torch.zeros_like(keep).index_fill(0, setting["kept"], True)
    if setting["budget"] == 100:
        assert keep.sum() == 100 == theirs.sum() + 2
        assert not (theirs & ~keep).any()
    else:
        assert torch.equal(keep, theirs)
    merged = r.MergeNearest("mean").reduce(tokens.hidden, theirs, tokens)
    torch.testing.assert_close(merged, setting["merged"], atol=1e-5, rtol=0)


# -- PruMerge ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in ("prumerge", "prumerge_plus") for number in cases(name)]
)
def test_pru_merge(name: str, number: str) -> None:
    case = cases(name)[number]
    features, keys, kept = case["in/features"], case["in/keys"], case["out/order"]
    attention = class_row(case["in/class_query"][None, None], keys[None, None], keys.shape[1] ** -0.5)[0, 1:]
    torch.testing.assert_close(attention, case["out/class_attention"], atol=1e-5, rtol=0)
    row, joint = VisionAttention(-1, "joint", "class"), VisionKeys(-1, "joint")
    tokens = one_image(1, len(features))
    tokens = replace(tokens, hidden=features, vision={row: attention[:, None], joint: keys[1:]})
    scores = s.VisionRank(-1, "joint")(tokens)
    policy = p.Outliers(stride=name == "prumerge_plus")
    keep = policy.select(scores, tokens)
    targets = policy.merge_targets(scores, keep, tokens)
    assert chosen(keep & ~targets) == sorted(kept.tolist())
    assert targets.sum() == 1  # in the place of the token that the authors add at the end
    merged = torch.zeros_like(features)
    merged[keep] = r.MergeNeighbours().reduce(features, keep, replace(tokens, scores=scores, targets=targets))
    torch.testing.assert_close(merged[[*kept.tolist(), *chosen(targets)]], case["out/tokens"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("case", "setting"), settings_of("visionselector"))
def test_vision_selector(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    features, budget = case["in/features"], int(setting["budget"])
    tokens = one_image(1, len(features))
    tokens = replace(tokens, hidden=features, facts=replace(tokens.facts, hidden_size=features.shape[1]))
    scorer = s.VisionSelector(dim=len(case["in/query_weight"]))
    scorer.build(tokens.facts, -1)
    scorer.load_state_dict(
        {f"{part}.{kind}": case[f"in/{part}_{kind}"] for part in ("query", "key") for kind in ("weight", "bias")}
    )
    scores = scorer(tokens).detach()
    torch.testing.assert_close(scores, case["out/scores"], rtol=0, atol=1e-5)
    assert scores.argsort(descending=True)[:budget].tolist() == setting["order"].tolist()
    assert chosen(p.TopK(budget).select(scores, tokens)) == sorted(setting["order"].tolist())


@pytest.mark.parametrize(("case", "setting"), settings_of("visionselector"))
def test_vision_selectors_soft_mask(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    stretched = (3 * case["out/scores"]).requires_grad_()
    soft = soft_top_k(stretched, torch.zeros(len(stretched), dtype=torch.int64), setting["budget"][None].float())
    torch.testing.assert_close(soft, setting["soft"], rtol=0, atol=1e-5)
    torch.testing.assert_close(soft, (stretched + setting["shift"]).sigmoid(), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(soft @ case["in/upstream"], stretched)
    torch.testing.assert_close(gradient, setting["gradient"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("case", "setting"), settings_of("cdpruner"))
def test_cdpruner(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    tokens, text = one_image(1, len(case["in/features"])), case["in/text_embeds"]
    sample = torch.zeros(len(text), dtype=torch.int64)
    scores = s.QuestionRelevance()(replace(tokens, hidden=case["in/image_embeds"], text=text, text_sample=sample))
    relevance = min_max(scores, tokens.item, 1, epsilon=1e-6)  # the policy's
    torch.testing.assert_close(relevance, case["out/relevance"], rtol=0, atol=1e-5)
    torch.testing.assert_close(relevance.min(), case["out/relevance"].min(), rtol=1e-4, atol=0)
    assert in_order(p.DPP, scores, replace(tokens, hidden=case["in/features"]), setting["order"])


@pytest.mark.parametrize(("case", "setting"), settings_of("divprune"))
def test_divprune(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    tokens = replace(one_image(1, len(case["in/features"])), hidden=case["in/features"])
    assert in_order(p.MaxMin, torch.zeros(len(tokens)), tokens, setting["order"])


@pytest.mark.parametrize(("case", "setting"), settings_of("scope"))
def test_scope(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    tokens, power = one_image(1, len(case["in/features"])), float(setting["alpha"])
    tokens = replace(tokens, hidden=case["in/features"])
    assert in_order(p.Coverage, case["in/saliency"], tokens, setting["order"], scale="raw", power=power)
    assert in_order(p.Coverage, case["in/saliency"].log(), tokens, setting["order"], scale="log", power=power)


@pytest.mark.parametrize(("case", "setting"), settings_of("idpruner_mmr"))
def test_idpruner(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    tokens = replace(one_image(1, len(case["in/features"])), hidden=case["in/features"])
    policy = p.MMR(count=int(setting["budget"]), trade_off=float(setting["lambda"]), scale="raw")
    assert chosen(policy.select(case["in/scores"], tokens)) == setting["kept"].tolist()


# -- inside the decoder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("sparsevlm").values(), ids=cases("sparsevlm"))
def test_sparse_vlm_rates_by_text_about_the_image(case: dict[str, Tensor]) -> None:
    tokens = sparse_vlm_tokens(case)
    assert tokens.text is not None
    prompt = replace(tokens, hidden=tokens.embeds)
    assert chosen(s.TextRank().raters(prompt)) == case["out/raters"].tolist()
    torch.testing.assert_close(s.TextRank()(tokens).exp(), case["out/relation"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("case", "setting"), settings_of("sparsevlm"))
def test_sparse_vlm_recycles(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    tokens, budget = sparse_vlm_tokens(case), int(setting["budget"])
    scores, policy = s.TextRank()(tokens), p.Recycled(count=budget)
    keep = policy.select(scores, tokens)
    targets = policy.merge_targets(scores, keep, tokens)
    assert chosen(keep & ~targets) == setting["kept"].tolist()
    recycled = scores.argsort(descending=True)[budget:][: len(setting["recycled"])]
    assert recycled.tolist() == setting["recycled"].tolist()
    assert len(recycled) == recycled_count(0.3, torch.tensor(len(tokens) - budget))
    assert set(chosen(targets)) <= set(recycled.tolist())
    reducer = r.MergeNearest("mean", "distance", share=0.3)
    states = reducer.reduce(tokens.hidden, keep, replace(tokens, scores=scores, targets=targets))
    assert torch.equal(states[~targets[keep]], tokens.hidden[setting["kept"]])
    merged = setting["merged"]  # in the order of centres by their peaks; ours leave in the order of the prompt
    nearest = torch.cdist(states[targets[keep]], merged).argmin(1)
    assert sorted(nearest.tolist()) == list(range(len(merged)))
    torch.testing.assert_close(states[targets[keep]], merged[nearest], rtol=0, atol=1e-5)


def sparse_vlm_tokens(case: dict[str, Tensor]) -> VisualTokens:
    hidden, attention = case["in/hidden"], case["in/text_attention"]
    image = len(hidden)
    text = case["in/embeds"][image:]
    return replace(
        one_image(1, image),
        embeds=case["in/embeds"][:image],
        hidden=hidden,
        text=text,
        text_sample=torch.zeros(len(text), dtype=torch.int64),
        probes={"text": attention[:, case["out/raters"]].mean(1).log().T},
    )


@pytest.mark.parametrize(("case", "setting"), settings_of("dart_angelslim"))
def test_dart(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    features, keys = case["in/features"], case["in/keys"]
    image = next(size for size in SIZES if size <= len(features) - 6 < size + 4)  # 6 to 9 text tokens
    tokens = replace(
        one_image(1, image),
        hidden=features[:image],
        keys=keys[:image],
        text=features[image:],
        text_keys=keys[image:],
        text_sample=torch.zeros(len(features) - image, dtype=torch.int64),
    )
    image_pivots, text_pivots = setting["pivots"].tolist()
    policy = p.DART(count=int(setting["budget"]), image_pivots=image_pivots, text_pivots=text_pivots)
    assert chosen(policy.select(torch.zeros(image), tokens)) == setting["kept"].tolist()


@pytest.mark.parametrize(("case", "setting"), settings_of("fastv"))
def test_fastv(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    start, length = int(case["in/image_start"]), int(case["in/image_length"])
    row = case["in/last_row"][:, start : start + length]
    tokens = replace(one_image(1, length), probes={"last": row.log().T})
    scores = s.AttentionRank()(tokens)
    assert in_order(p.TopK, scores, tokens, setting["order"])


@pytest.mark.parametrize("case", cases("pyramiddrop").values(), ids=cases("pyramiddrop"))
def test_pyramid_drop(case: dict[str, Tensor]) -> None:
    """Three stages on one another, of the tokens there were at first; the row's softmax is over what is left."""
    hidden, start, length = case["in/hidden"], int(case["in/image_start"]), int(case["in/image_length"])
    query = (case["in/query_weight"] @ hidden[-1]).unflatten(0, (2, 4))
    keys = (hidden @ case["in/key_weight"].T).unflatten(1, (2, 4))
    logits = torch.einsum("hd,nhd->nh", query, keys) / 2
    left = torch.ones(length, dtype=torch.bool)
    for stage, ratio in enumerate(case["out/ratios"][1:].tolist()):
        there = torch.ones(len(hidden), dtype=torch.bool)
        there[start : start + length] = left
        row = logits.masked_fill(~there[:, None], -torch.inf).log_softmax(0)[start : start + length]
        tokens = replace(one_image(1, length), probes={"last": row}).subset(left)
        left[left.clone()] = p.KeepRatio(ratio).select(s.AttentionRank()(tokens), tokens)
        assert chosen(left) == case[f"out/stage{stage}/kept"].tolist()


@pytest.mark.parametrize(("case", "setting"), settings_of("autoprune"))
def test_autoprunes_first_cut(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    """With its own information: in bits, and as a multiple of the sum that ours divides the vision tower's rows by."""
    vision, text = case["in/vision_attention"], case["in/text_attention0"]
    bits = case["out/information0"] / vision.sum()
    tokens = replace(
        one_image(1, len(vision)),
        vision={VisionAttention(-2): vision[:, None]},
        probes={"text": text.mean(1).log().T, "information": (bits * math.log(2)).expand(len(vision), 1)},
    )
    keep = p.TopK(len(setting["first_kept"])).select(s.VisionTextRank()(tokens), tokens)
    assert chosen(keep) == sorted(setting["first_kept"].tolist())


@pytest.mark.parametrize(("case", "setting"), settings_of("autoprune"))
def test_autoprunes_curve(case: dict[str, Tensor], setting: dict[str, Tensor]) -> None:
    """Its curve over layers 1 to 31, up to the factor that the budget sets."""
    last = float(setting["keep_percent"][-1])
    policy = p.LogisticRatio(0, list(range(1, 32)), retention=last, reach="last")
    (shares,) = policy.ratios(32, setting["information1"][None]).T
    torch.testing.assert_close(shares, setting["keep_percent"].clamp(max=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", cases("autoprune").values(), ids=cases("autoprune"))
def test_autoprunes_later_cuts(case: dict[str, Tensor]) -> None:
    for key, setting in settings(case).items():
        text, kept = case[f"in/{key}/text_attention1"], setting["layer1_kept"]
        tokens = replace(one_image(1, text.shape[-1]), probes={"text": text.mean(1).log().T})
        keep = p.TopK(len(kept)).select(s.TextRank(select=False)(tokens), tokens)
        assert chosen(keep) == sorted(kept.tolist())


@pytest.mark.parametrize("case", cases("pixelprune").values(), ids=cases("pixelprune"))
def test_pixel_prune(case: dict[str, Tensor]) -> None:
    """In its default order, under every metric and threshold of the file."""
    _, height, width = case["in/grid_thw"][0].tolist()  # in patches, four to a token
    tokens = one_image(height // 2, width // 2)
    tokens = replace(tokens, vision={VisionPixels(): case["in/pixel_values"].reshape(len(tokens), -1)})
    found = [name.split("/")[2:4] for name in case if name.startswith("out/pred_2d/")]
    assert len(found) >= 4
    for metric, threshold in found:
        keep = p.PixelPrune(float(threshold), metric).select(torch.zeros(len(tokens)), tokens)  # type: ignore[arg-type]
        assert chosen(keep) == case[f"out/pred_2d/{metric}/{threshold}/kept"].tolist()
