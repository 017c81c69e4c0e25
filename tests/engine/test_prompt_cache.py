"""Caches whose layers hold other columns of the prompt, or at other positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.engine.compaction import Compaction
from glimpse_lightning.engine.prompt_cache import PromptColumns
from glimpse_lightning.policies import DART, KeepRatio
from glimpse_lightning.scorers import VIP, AttentionRank, FixedRatio
from glimpse_lightning.testing import SIZES, recompute_logits


def backbone_of(family: str) -> gl.Backbone:
    return gl.wrap_backbone(FAMILIES[family]())


def stage(layer: int, ratio: float, **options: Any) -> gl.PruneStage:
    return gl.PruneStage(layer, AttentionRank() if layer >= 0 else FixedRatio(), KeepRatio(ratio), **options)


def columns_of(position_ids: Any, keep: Any) -> tuple[PromptColumns, PromptColumns]:
    """PromptColumns at ``position_ids [..., 1, N]``, and what ``keep [N]`` leaves of them."""
    positions = torch.tensor(position_ids)
    mask = torch.ones(positions.shape[-2:], dtype=torch.bool)
    order = torch.arange(mask.shape[1]).expand_as(mask)
    before = PromptColumns(mask, positions, order, order)
    return before, before.compacted(Compaction.plan(torch.tensor([keep]) > 0))


def test_one_axis_is_numbered_consecutively() -> None:
    before, after = columns_of([[0, 1, 2, 3, 4, 5, 6]], [1, 0, 1, 0, 0, 1, 1])
    assert after.position_ids.tolist() == [[0, 2, 5, 6]]
    assert after.renumbered(before).position_ids.tolist() == [[0, 1, 2, 3]]


def test_three_axes_share_one_number_line() -> None:
    """Text, an image of 3 x 4 tokens from position 2 on, text from 2 + 4 on; (0, 1), (0, 3) and (2, 3) are kept."""
    t, h, w = [0, 1, *[2] * 12, 6, 7], [0, 1, *(2 + i // 4 for i in range(12)), 6, 7], None
    w = [0, 1, *(2 + i % 4 for i in range(12)), 6, 7]
    keep = [1, 1, *(i in (1, 3, 11) for i in range(12)), 1, 1]
    before, after = columns_of([[t], [h], [w]], keep)
    # Held before: 0 ... 7; still held: 0, 1, 2 (t and row 0), 3 (column 1), 4 (row 2), 5 (column 3), 6, 7: no gap.
    assert torch.equal(after.renumbered(before).position_ids, after.position_ids)
    keep = [1, 1, *(i in (3, 7) for i in range(12)), 1, 1]  # rows 0 and 1, column 3: position 4 is lost
    before, after = columns_of([[t], [h], [w]], keep)
    expected = [[[0, 1, 2, 2, 5, 6]], [[0, 1, 2, 3, 5, 6]], [[0, 1, 4, 4, 5, 6]]]
    assert after.renumbered(before).position_ids.tolist() == expected


def test_gaps_that_were_there_before_stay() -> None:
    before, after = columns_of([[0, 4, 5, 9]], [1, 0, 1, 1])
    assert after.renumbered(before).position_ids.tolist() == [[0, 4, 8]]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_lengths_and_positions_by_layer(family: str) -> None:
    """KV lengths fall from stage to stage, and decoding goes on behind each layer's own numbering."""
    backbone = backbone_of(family)
    stages = [stage(0, 0.5, early_kv="keep", positions="renumber"), stage(2, 0.25, early_kv="keep")]
    inputs = backbone.example_inputs([[(4, 4)]])
    out = gl.PrunedVLM(backbone, gl.Pruner(stages)).prefill(**inputs)
    total = inputs["input_ids"].shape[1]
    assert [layer.keys.shape[2] for layer in out.cache.layers] == [total, total - 8, total - 8, total - 12]
    first, *later = (columns.last for columns in out.cache.columns)
    assert torch.equal(first, backbone.embed(inputs).position_ids[..., -1:])
    assert all(torch.equal(last, out.position_ids[..., -1:]) for last in later)
    if family == "llava":
        assert int(first) == total - 1
        assert int(later[0]) == total - 9  # gaps of the second stage stay: it does not renumber
    assert not out.cache.even


def test_pruning_again_makes_an_even_cache() -> None:
    backbone = backbone_of("llava")
    out = gl.PrunedVLM(backbone, gl.Pruner([stage(0, 0.5, early_kv="keep"), stage(2, 0.25)])).prefill(
        **backbone.example_inputs(SIZES)
    )
    assert out.cache.even
    assert {layer.keys.shape[2] for layer in out.cache.layers} == {out.attention_mask.shape[1]}


def test_renumbering_before_the_decoder_needs_no_step_of_its_own() -> None:
    backbone = backbone_of("llava")
    inputs = backbone.example_inputs([[(4, 4)]])
    out = gl.PrunedVLM(backbone, gl.Pruner([stage(-1, 0.25, positions="renumber")])).prefill(**inputs)
    assert out.cache.even
    assert torch.equal(out.position_ids[0], torch.arange(out.position_ids.shape[1]))


@pytest.mark.parametrize("early_kv", ["keep", "prune"])
def test_decoder_keys_are_those_of_the_columns_still_there(early_kv: Any) -> None:
    """DART behind a stage after the same layer reads keys of what that one left, wherever the cache has them."""
    backbone = backbone_of("qwen2_5_vl")
    kept = []
    for option in ("prune", early_kv):
        stages = [stage(1, 0.7, early_kv=option), gl.PruneStage(1, FixedRatio(), DART(ratio=0.4))]
        kept.append(gl.PrunedVLM(backbone, gl.Pruner(stages)).prefill(**backbone.example_inputs(SIZES)).keep[-1])
    assert torch.equal(*kept)


@pytest.mark.parametrize(("early_kv", "positions"), [("keep", "keep"), ("prune", "renumber"), ("keep", "renumber")])
def test_replay_predicts_what_decoding_does(early_kv: Any, positions: Any) -> None:
    options = {"early_kv": early_kv, "positions": positions}
    backbone = backbone_of("qwen2_5_vl")
    model = gl.PrunedVLM(backbone, gl.Pruner([stage(0, 0.6, **options), stage(2, 0.3, **options)]))
    inputs, key = backbone.example_inputs(SIZES), torch.arange(len(SIZES))
    out = model.prefill(keys=key, **inputs)
    made = model.generate(
        prefill=out, max_new_tokens=5, min_new_tokens=5, do_sample=True, num_return_sequences=2, top_k=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    samples = [Sample(str(i), i, "", [""]) for i in range(len(SIZES))]
    batch = Batch(inputs, made.sequences, torch.ones_like(made.sequences), key, torch.ones(len(SIZES)), samples)
    with torch.no_grad():
        found = model.replay(batch, made.sequences, torch.ones_like(made.sequences)).logits
    torch.testing.assert_close(found, torch.stack(list(made.logits), 1), atol=1e-4, rtol=1e-4)
    plain = gl.PrunedVLM(backbone, gl.Pruner([stage(0, 0.6), stage(2, 0.3)]))
    with torch.no_grad():
        other = plain.replay(batch, made.sequences, torch.ones_like(made.sequences)).logits
    assert not torch.allclose(found, other, atol=1e-2)


def test_recomputation_tells_the_options_apart() -> None:
    """The plain recomputation that the conformance kit trusts gives other logits where an option is ignored."""
    backbone = backbone_of("llava")
    inputs, ids = backbone.example_inputs(SIZES), torch.full((len(SIZES), 3), 9)
    results = []
    for options in ({}, {"early_kv": "keep"}, {"positions": "renumber"}):
        pruner = gl.Pruner([stage(1, 0.3, **options)])
        out = gl.PrunedVLM(backbone, pruner).prefill(**inputs)
        results.append(recompute_logits(backbone, pruner, inputs, out, ids))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (results[one] - results[other]).abs().max() > 1e-2


def test_training_refuses_renumbering() -> None:
    backbone = backbone_of("llava")
    vip = VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2)
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, vip, KeepRatio(0.5), positions="renumber")]))
    ids = torch.ones(len(SIZES), 2, dtype=torch.long)
    batch = Batch(backbone.example_inputs(SIZES), ids, ids, torch.arange(4), torch.ones(4), [])
    with pytest.raises(gl.GlimpseError, match=r"renumbers positions.*`positions: keep`"):
        model.distill(batch, lambda scores, _: scores)


def test_nothing_to_prune_is_an_error() -> None:
    with pytest.raises(gl.GlimpseError, match="`early_kv: keep`"):
        gl.PrunedVLM(backbone_of("llava"), gl.Pruner([stage(3, 0.5, early_kv="keep")]))
    with pytest.raises(ValueError, match="`early_kv` to be 'prune' or 'keep', but got 'drop'"):
        stage(1, 0.5, early_kv="drop")


def test_saved_with_the_pruner(tmp_path: Any) -> None:
    pruner = gl.Pruner([stage(1, 0.5, early_kv="keep", positions="renumber"), stage(2, 0.2)])
    gl.PrunedVLM(backbone_of("llava"), pruner)
    loaded = gl.load_pruner(gl.save_pruner(pruner, tmp_path / "pruner"))
    assert [(s.early_kv, s.positions) for s in loaded.stages] == [("keep", "renumber"), ("prune", "keep")]
