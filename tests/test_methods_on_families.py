"""Training-free methods on a tiny model of each family: they run batched, and no sample feels its batch mates."""

from __future__ import annotations

import pytest
import torch
from methods import METHODS
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning import policies as p
from glimpse_lightning import scorers as s
from glimpse_lightning.testing import SIZES, recompute_logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_and_independent(family: str, method: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family]())
    model = gl.PrunedVLM(backbone, gl.Pruner(METHODS[method]()))
    inputs = backbone.example_inputs(SIZES)
    together = model.prefill(**inputs)
    assert not together.logits.isnan().any()
    assert 0 < torch.stack(together.keep).all(0).float().mean() < 1 or method == "vtw"
    for index, sizes in enumerate(SIZES):
        alone = model.prefill(**backbone.example_inputs([sizes], first_sample=index))
        torch.testing.assert_close(together.logits[index], alone.logits[0], atol=1e-4, rtol=1e-4)
        for keep, single in zip(together.keep, alone.keep, strict=True):
            assert torch.equal(keep[together.tokens.sample == index], single)
    ids = model.generate(prefill=together, max_new_tokens=3, min_new_tokens=3)
    assert ids.shape == (len(SIZES), 3)


@pytest.mark.parametrize("method", ["dart", "hiprune", "vtw"])
def test_decoding_equals_recomputation(method: str) -> None:
    """VTW, too, which leaves no visual token at all."""
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    pruner = gl.Pruner(METHODS[method]())
    model = gl.PrunedVLM(backbone, pruner)
    inputs = backbone.example_inputs(SIZES)
    out = model.prefill(**inputs)
    made = model.generate(
        prefill=out, max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True
    )
    expected = recompute_logits(backbone, pruner, inputs, out, made.sequences[:, :-1])
    torch.testing.assert_close(torch.stack(list(made.logits), 1), expected, atol=1e-4, rtol=1e-4)


def test_trap_every_layer_runs_once_and_caches_once() -> None:
    """FastV's cached variant runs layer K - 1 twice and appends its keys twice; its demo masks and drops nothing."""
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, s.AttentionRank(), p.KeepRatio(0.3))]))
    calls: list[tuple[int, int]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _m, args, index=index: calls.append((index, args[0].shape[1])))
        for index, layer in enumerate(backbone.layers)
    ]
    inputs = backbone.example_inputs(SIZES)
    out = model.prefill(**inputs)
    for hook in hooks:
        hook.remove()
    before, after = inputs["input_ids"].shape[1], int(out.attention_mask.sum(1).max())
    assert calls == [(0, before), (1, before), (2, after), (3, after)]
    assert after < before
    assert {layer.keys.shape[2] for layer in out.cache.layers} == {after}


class _Replay(s.Scorer):
    """Scores that were written down."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, tokens: gl.VisualTokens) -> torch.Tensor:
        return self.scores


def test_trap_no_glimpse_is_left_in_the_cache() -> None:
    """The reference has to crop its glimpse's keys; here they never get in: all is as if scores fell from the sky.

    In double precision: the same product with the glimpse's row added may be rounded differently.
    """
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]().double())
    inputs = backbone.example_inputs(SIZES)
    torch.manual_seed(0)
    vip = s.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2, attention_layers="all")
    with torch.no_grad():
        pruned = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, vip, p.KeepRatio(0.5))])).double()
        out = pruned.prefill(**inputs)
        other = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, _Replay(out.scores[0]), p.KeepRatio(0.5))]))
        expected = other.prefill(**inputs)
    assert torch.equal(out.keep[0], expected.keep[0])
    assert torch.equal(out.position_ids, expected.position_ids)
    for mine, theirs in zip(out.cache.layers, expected.cache.layers, strict=True):
        assert mine.keys.shape[2] == out.attention_mask.shape[1]
        torch.testing.assert_close(mine.keys, theirs.keys, rtol=0, atol=1e-12)
        torch.testing.assert_close(mine.values, theirs.values, rtol=0, atol=1e-12)
    ids = [model.generate(prefill=done, max_new_tokens=4) for model, done in ((pruned, out), (other, expected))]
    assert torch.equal(*ids)


def test_trap_positions_are_the_original_ones() -> None:
    """Kept tokens are not renumbered, and decoding goes on behind the prompt's original end."""
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(-1, s.FixedRatio(), p.KeepRatio(0.3))]))
    inputs = backbone.example_inputs([[(4, 4)]])
    out = model.prefill(**inputs)
    original = torch.arange(inputs["input_ids"].shape[1])[out.prompt_keep[0]]
    assert torch.equal(out.position_ids[0], original)
    assert not torch.equal(original, torch.arange(len(original)))
    assert out.position_ids[0, -1] == inputs["input_ids"].shape[1] - 1
