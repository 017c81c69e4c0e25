"""Scorers of published methods against plain Python, and what the engine hands them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from factories import FACTS, visual_tokens
from tiny_models import llava, qwen2_5_vl
from torch import Tensor
from torch.nn import functional as F

import glimpse_lightning as gl
from glimpse_lightning.core.visual_tokens import VisionAttention, VisualTokens
from glimpse_lightning.policies import DART, HiPrune, KeepRatio, LocalGlobal, LogisticRatio, TopK
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import (
    AttentionProbe,
    AttentionRank,
    FixedRatio,
    Holistic,
    Oracle,
    Requires,
    TextRank,
    VisionRank,
    VisionTextRank,
)
from glimpse_lightning.scorers.vision_text_rank import information
from glimpse_lightning.testing import SIZES

BATCH = [[(1, 5, 6)], [], [(1, 2, 2), (2, 4, 3)], [(1, 9, 1)], [(1, 1, 1)]]


# -- HoloV -------------------------------------------------------------------------------------------------------


def test_holistic() -> None:
    scorer = Holistic(layer=-1, diversity=0.5, crops=3)
    tokens = visual_tokens(BATCH, scorer.requires)
    scores = scorer(tokens)
    attention = 1000 * tokens.attention(VisionAttention(-1, queries="class"))
    for item in range(tokens.num_items):
        mine = (tokens.item == item).nonzero().flatten().tolist()
        for crop in torch.tensor(mine).tensor_split(3):
            unit = F.normalize(tokens.hidden[crop], dim=-1)
            cosine = (unit @ unit.T).fill_diagonal_(0)
            others = max(1, len(crop) - 1)
            variance = (cosine - cosine.sum(1, keepdim=True) / others).square().sum(1) / others
            holistic = attention[crop] + 0.5 * variance * attention[crop].mean() / (variance.mean() + 1e-6)
            torch.testing.assert_close(scores[crop].mean(), holistic.mean(), rtol=1e-4, atol=1e-2, equal_nan=True)
            assert scores[crop].argsort().tolist() == attention[crop].argsort().tolist()


# -- FasterVLM and HiPrune ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", ["class", "all"])
def test_vision_rank_reads_the_queries_that_it_asks_for(queries: Any) -> None:
    """On a tower with a class token, where another part of the stage asks for the other ones."""
    other = HiPrune(0.5, object_layer=1) if queries == "class" else LocalGlobal(0.5, shallow_layer=1)
    model = gl.PrunedVLM(
        gl.wrap_backbone(llava("eager")), gl.Pruner([gl.PruneStage(-1, VisionRank(1, queries=queries), other)])
    )
    inputs = model.backbone.example_inputs([[(4, 4)]])
    scores = model.prefill(**inputs).scores[0]
    tower: Any = model.model.get_submodule("model.vision_tower")
    weights = tower(inputs["pixel_values"], output_attentions=True).attentions[1].mean(1)[0]
    expected = weights[0] if queries == "class" else weights.sum(0)
    torch.testing.assert_close(scores, expected[1:].log())


# -- SparseVLM ---------------------------------------------------------------------------------------------------


def test_raters_are_text_that_the_image_resembles() -> None:
    scorer = TextRank()
    tokens = visual_tokens(BATCH, Requires(text=True))
    assert tokens.text is not None and tokens.text_sample is not None
    raters = scorer.raters(tokens)
    for sample in range(tokens.num_samples):
        text = (tokens.text_sample == sample).nonzero().flatten()
        mine = tokens.hidden[tokens.sample == sample]
        if not len(mine):
            assert raters[text].all()
            continue
        m = (mine @ tokens.text[text].T).softmax(-1).mean(0)
        assert raters[text].tolist() == (m > m.mean()).tolist()
    alone = replace(tokens, text=tokens.text[:1], text_sample=tokens.text_sample[:1])
    assert scorer.raters(alone).tolist() == [True]
    assert TextRank(select=False).raters(tokens).all()


@pytest.mark.parametrize(("layer", "after"), [(None, -1), (3, 2)])
def test_text_rank_refuses_layers_that_have_not_run(layer: Any, after: int) -> None:
    with pytest.raises(GlimpseError, match="layer between 0 and the stage's last layer"):
        TextRank(layer).build(FACTS, after)
    with pytest.raises(ValueError, match="log_softmax"):
        AttentionProbe(layers=(0,), query="text")
    with pytest.raises(ValueError, match="'text'"):
        AttentionProbe(layers=(0,), query="last", scale="information")


class _Seen(TextRank):
    """Remembers what the engine handed over."""

    def raters(self, tokens: VisualTokens) -> Tensor:
        self.chosen = super().raters(tokens)
        self.texts = tokens.text_sample
        return self.chosen

    def forward(self, tokens: VisualTokens) -> Tensor:
        self.tokens = tokens
        return super().forward(tokens)


@pytest.mark.parametrize("first", [None, TopK(6)])
@pytest.mark.parametrize("build", [qwen2_5_vl, llava])
def test_text_rows_equal_the_attention_map(build: Any, first: Any) -> None:
    """Also behind an earlier stage, where columns have moved."""
    backbone = gl.wrap_backbone(build("eager"))
    inputs = backbone.example_inputs(SIZES)
    scorer = _Seen(layer=1)
    stages = [gl.PruneStage(0, FixedRatio(), first)] if first else []
    model = gl.PrunedVLM(backbone, gl.Pruner([*stages, gl.PruneStage(1, scorer, KeepRatio(0.5))]))
    out = model.prefill(**inputs)
    prompt = backbone.embed(inputs)
    kept = prompt.mask.clone()
    if first:
        kept[prompt.visual] = out.keep[0]
    scores = out.scores[-1]
    texts = (prompt.mask & ~prompt.visual & (prompt.visual.cumsum(1) > 0)).nonzero()
    for row in range(len(SIZES)):
        if not SIZES[row]:
            continue
        weights = _map(backbone, prompt, kept, row, 1)  # [H, N, N]
        raters = texts[(texts[:, 0] == row) & scorer.chosen][:, 1]
        mine = (prompt.visual[row] & kept[row]).nonzero().flatten()
        expected = weights[:, raters][:, :, mine].mean((0, 1)).log()
        got = scores[(out.tokens.sample == row) & (scores > -torch.inf)]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first", [None, TopK(6)])
@pytest.mark.parametrize("build", [qwen2_5_vl, llava])
def test_last_row_equals_the_attention_map(build: Any, first: Any) -> None:
    """FastV's and PyramidDrop's score."""
    backbone = gl.wrap_backbone(build("eager"))
    inputs = backbone.example_inputs(SIZES)
    stages = [gl.PruneStage(0, FixedRatio(), first)] if first else []
    model = gl.PrunedVLM(backbone, gl.Pruner([*stages, gl.PruneStage(1, AttentionRank(), KeepRatio(0.5))]))
    out = model.prefill(**inputs)
    prompt = backbone.embed(inputs)
    kept = prompt.mask.clone()
    if first:
        kept[prompt.visual] = out.keep[0]
    for row in range(len(SIZES)):
        mine = (prompt.visual[row] & kept[row]).nonzero().flatten()
        expected = _map(backbone, prompt, kept, row, 1)[:, -1, mine].mean(0).log()
        scores = out.scores[-1][out.tokens.sample == row]
        torch.testing.assert_close(scores[scores > -torch.inf], expected, atol=1e-4, rtol=1e-4)


def _map(backbone: Any, prompt: Any, kept: Tensor, row: int, layer: int) -> Tensor:
    """Attention weights ``[H, N, N]`` of a layer, where from layer 1 on only ``kept`` columns are seen."""
    total = prompt.mask.shape[1]
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    hidden, weights = prompt.embeds[row : row + 1], []
    position_ids = prompt.position_ids[..., row : row + 1, :]
    positions = backbone.position_embeddings(hidden, position_ids)
    hook = backbone.layers[layer].self_attn.register_forward_hook(lambda _m, _i, o: weights.append(o[1]))
    for index in range(layer + 1):
        seen = prompt.mask[row] if index == 0 else kept[row]
        mask = torch.where(causal & seen | torch.eye(total, dtype=torch.bool), 0.0, torch.finfo(torch.float32).min)
        hidden = backbone.run_layer(index, hidden, mask[None, None], positions, None, None)
    hook.remove()
    return weights[0][0]


# -- AutoPrune -----------------------------------------------------------------------------------------------------


class _Informed(LogisticRatio):
    """Remembers what it was told."""

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        self.told = information(tokens)
        return super().select(scores, tokens)


@pytest.mark.parametrize("build", [qwen2_5_vl, llava])
def test_information_is_that_of_the_attention_map(build: Any) -> None:
    """Of a later stage, too, whose tokens are fewer; and of no batch mate."""
    backbone = gl.wrap_backbone(build("eager"))
    inputs = backbone.example_inputs(SIZES)
    policies = [_Informed(0, [0, 2], 0.6), _Informed(1, [0, 2], 0.6)]
    stages = [gl.PruneStage(layer, TextRank(select=False), p) for layer, p in zip((0, 2), policies, strict=True)]
    gl.PrunedVLM(backbone, gl.Pruner(stages)).prefill(**inputs)
    prompt = backbone.embed(inputs)
    texts = prompt.mask & ~prompt.visual & (prompt.visual.cumsum(1) > 0)
    for row in range(len(SIZES)):
        if not SIZES[row]:
            continue
        weights = _map(backbone, prompt, prompt.mask, row, 0)[:, texts[row]][..., prompt.visual[row]].double()
        expected = 0.0
        for head in weights:
            joint = head / head.sum()
            apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
            terms = torch.special.xlogy(joint, joint / apart)  # text between two images cannot see the second
            expected += float(terms.nan_to_num().sum()) / int(texts[row].sum())
        assert expected > 1e-3
        for policy in policies:
            assert float(policy.told[row]) == pytest.approx(expected / math.log(2), rel=1e-3)


def test_vision_and_text_rank() -> None:
    scorer = VisionTextRank(layer=1, vision_layer=-1)
    scorer.build(FACTS, 2)
    tokens = visual_tokens(BATCH, scorer.requires)
    scores = scorer(tokens)
    vision = tokens.attention(VisionAttention(-1, queries="class"))
    text = tokens.probes["text"].exp().mean(-1)
    for sample in tokens.sample.unique().tolist():
        mine = tokens.sample == sample
        information = tokens.probes["information"][mine][0].sum() / math.log(2)
        torch.testing.assert_close(scores[mine], vision[mine] / vision[mine].sum() + 0.3 * information * text[mine])
    assert scorer.raters(visual_tokens(BATCH, Requires(text=True))).all()


# -- decoder keys, oracle -------------------------------------------------------------------------------------------


class _Keys(DART):
    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        self.tokens = tokens
        return super().select(scores, tokens)


def test_decoder_keys_of_visual_and_text_tokens() -> None:
    backbone = gl.wrap_backbone(qwen2_5_vl())
    inputs = backbone.example_inputs(SIZES)
    policy = _Keys(ratio=0.5)
    gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, FixedRatio(), policy)])).prefill(**inputs)
    plain = gl.PrunedVLM(backbone).prefill(**inputs)
    keys = plain.cache.layers[1].keys.transpose(1, 2).flatten(2)
    prompt = backbone.embed(inputs)
    assert policy.tokens.keys is not None and policy.tokens.text_keys is not None
    torch.testing.assert_close(policy.tokens.keys, keys[prompt.visual])
    torch.testing.assert_close(policy.tokens.text_keys, keys[prompt.mask & ~prompt.visual])
    before = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(-1, FixedRatio(), DART(ratio=0.5))]))
    with pytest.raises(GlimpseError, match="decoder keys"):
        before.prefill(**inputs)


def test_oracle() -> None:
    tokens = visual_tokens([[(1, 4, 4)], [(1, 2, 2)]])
    box = (0.26, 0.26, 0.49, 0.49)
    known = replace(tokens, boxes=([[box]], None))
    scores = Oracle()(known)
    assert (scores[:16] > 0).nonzero().flatten().tolist() == [5]
    assert torch.equal(scores[16:], FixedRatio()(tokens)[16:])
    assert torch.equal(Oracle()(tokens), FixedRatio()(tokens))


def test_oracle_is_handed_boxes() -> None:
    backbone = gl.wrap_backbone(qwen2_5_vl())
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(-1, Oracle(), TopK(1))]))
    inputs = backbone.example_inputs([[(4, 4)], [(4, 4)]])
    out = model.prefill(**inputs, boxes=[[[(0.76, 0.76, 0.9, 0.9)]], None])
    assert out.keep[0].nonzero().flatten().tolist() == [15, 16]
