"""Prompts that are pruned before the language model, handed to Hugging Face's own model as embeddings and positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl

SIZES = [[(2, 3)], [(3, 4), (2, 2)]]


def pruner(policy: Any = None, layer: float = -1, **options: Any) -> gl.Pruner:
    return gl.Pruner([gl.PruneStage(layer, gl.scorers.Random(), policy or gl.policies.KeepRatio(0.4), **options)])


def model_of(family: str, **options: Any) -> tuple[gl.PrunedVLM, dict[str, Any]]:
    backbone = gl.wrap_backbone(FAMILIES[family]())
    return gl.PrunedVLM(backbone, pruner(**options)), backbone.example_inputs(SIZES)


ABLE = [name for name in FAMILIES if name not in ("gemma3", "qwen3_vl")]


@pytest.mark.parametrize("family", ABLE)
def test_hugging_face_answers_from_the_pruned_prompt_as_we_do(family: str) -> None:
    model, inputs = model_of(family)
    prompt = model.prune_prompt(**inputs)
    out = model.prefill(**inputs)
    assert torch.equal(prompt.keep, out.keep[0]) and torch.equal(prompt.prompt_keep, out.prompt_keep)
    assert 0 < prompt.keep.sum() < len(prompt.keep)
    assert prompt.position_ids.shape[-2:] == prompt.attention_mask.shape == prompt.inputs_embeds.shape[:2]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        logits = model.model(**prompt.inputs).logits[:, -1]
        torch.testing.assert_close(logits, out.logits, atol=1e-4, rtol=1e-4)
        answers = model.model.generate(**prompt.inputs, **options)
    assert torch.equal(answers, model.generate(out, **options))


@pytest.mark.parametrize(("family", "why"), [("gemma3", "see each other"), ("qwen3_vl", "later layers")])
def test_what_embeddings_do_not_hold_is_refused(family: str, why: str) -> None:
    model, inputs = model_of(family)
    with pytest.raises(gl.GlimpseError, match=why):
        model.prune_prompt(**inputs)


def test_a_pruner_within_the_model_is_refused() -> None:
    model, inputs = model_of("qwen2_5_vl", layer=1)
    with pytest.raises(gl.GlimpseError, match="after layer 1"):
        model.prune_prompt(**inputs)
    with pytest.raises(gl.GlimpseError, match="there is none"):
        gl.PrunedVLM(model.backbone).prune_prompt(**inputs)


def test_budgets_of_a_call_count() -> None:
    model, inputs = model_of("qwen2_5_vl")
    assert model.prune_prompt(**inputs, retention=1.0).keep.all()
    assert model.prune_prompt(**inputs, retention=0.1).keep.sum() < model.prune_prompt(**inputs).keep.sum()
