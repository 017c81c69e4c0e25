"""Gemma 3: images whose tokens see each other in both directions, and layers with a sliding window."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.testing import SIZES, recompute_logits


def test_images_are_seen_in_both_directions(monkeypatch):
    backbone = gl.wrap_backbone(FAMILIES["gemma3"]())
    inputs = backbone.example_inputs([[(2, 2)]])
    both = gl.PrunedVLM(backbone).prefill(**inputs).logits
    monkeypatch.setattr(type(backbone), "bidirectional_images", False)
    assert not torch.allclose(both, gl.PrunedVLM(backbone).prefill(**inputs).logits, atol=1e-3)


@pytest.mark.parametrize("layer", [-1, 1])
def test_after_pruning_what_is_left_of_an_image_does(layer):
    """The mask after a stage is that of the kept tokens alone: recomputation with all of them in place agrees."""
    backbone = gl.wrap_backbone(FAMILIES["gemma3"]())
    pruner = gl.Pruner([gl.PruneStage(layer, gl.scorers.Random(), gl.policies.KeepRatio(0.6))])
    model, inputs = gl.PrunedVLM(backbone, pruner), backbone.example_inputs(SIZES)
    out = model.prefill(**inputs)
    assert 0 < out.keep[0].float().mean() < 0.7
    torch.testing.assert_close(
        out.logits, recompute_logits(backbone, pruner, inputs, out, out.logits.new_zeros(4, 0).long())[:, 0]
    )


def test_short_windows_equal_hugging_face():
    model = FAMILIES["gemma3"]()
    model.config.text_config.sliding_window = 6
    for layer in model.model.language_model.layers:
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = 6
    backbone = gl.wrap_backbone(model)
    inputs = backbone.example_inputs(SIZES)
    with torch.no_grad():
        expected = model(**backbone.hf_inputs(inputs)).logits[:, -1]
    torch.testing.assert_close(gl.PrunedVLM(backbone).prefill(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    hf = model.generate(**backbone.hf_inputs(inputs), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    ids = gl.PrunedVLM(backbone).generate(**inputs, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(ids, hf[:, inputs["input_ids"].shape[1] :])
