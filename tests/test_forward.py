"""The model's own doors: forward with labels, saving, pushing. Equality with Hugging Face is in the conformance kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.testing import SIZES


def pruned(ratio: float = 0.3) -> gl.PrunedVLM:
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(ratio))
    return gl.PrunedVLM(backbone, gl.Pruner([stage]))


def with_answers(model: gl.PrunedVLM, tokens: int = 3) -> tuple[dict[str, Any], Tensor]:
    inputs = model.backbone.example_inputs(SIZES)
    more = torch.arange(20, 20 + tokens * len(SIZES)).view(len(SIZES), tokens)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], 1)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -tokens:] = more
    return inputs, labels


def test_the_image_and_the_labels_matter() -> None:
    model = pruned()
    inputs, labels = with_answers(model)
    out = model(**inputs, labels=labels)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    assert float((model(**other, labels=labels).loss - out.loss).abs()) > 1e-4
    assert model(**inputs).loss is None
    some = labels.clone()
    some[1:] = -100  # samples without a label are all prompt, and count in no loss
    alone = model(**inputs, labels=some)
    assert float((alone.loss - out.loss).abs()) > 1e-4
    assert torch.equal(alone.logits[0].isnan(), out.logits[0].isnan())


def test_the_prompts_length_says_the_same_as_labels() -> None:
    model = pruned()
    inputs, labels = with_answers(model)
    want = model(**inputs, labels=labels)
    length = inputs["attention_mask"].sum(1) - 3
    torch.testing.assert_close(model(**inputs, prompt_length=length).logits, want.logits, equal_nan=True)
    both = model(**inputs, labels=labels.masked_fill(labels == labels[:, -3:-2], -100), prompt_length=length)
    torch.testing.assert_close(both.logits, want.logits, equal_nan=True)
    assert both.loss != want.loss
    shorter = model(**inputs, prompt_length=length - 1)  # which is another prompt: another token looks
    assert shorter.logits.shape == want.logits.shape


def test_whole_inputs_are_prompts() -> None:
    model = pruned()
    inputs = model.backbone.example_inputs(SIZES)
    out, prefill = model(**inputs), model.prefill(**inputs)
    torch.testing.assert_close(out.logits[:, -1], prefill.logits)
    assert torch.equal(~out.logits.isnan().all(-1), prefill.prompt_keep)


def test_the_loss_divides_by_what_trainer_says() -> None:
    model = pruned()
    inputs, labels = with_answers(model)
    mean, total = model(**inputs, labels=labels).loss, model(**inputs, labels=labels, num_items_in_batch=24).loss
    torch.testing.assert_close(total, mean * labels[labels != -100].numel() / 24)


def test_gradients_reach_the_language_model_through_prompt_and_continuation() -> None:
    model = pruned()
    inputs, labels = with_answers(model)
    model(**inputs, labels=labels).loss.backward()
    for name in ("k_proj", "v_proj"):
        first = getattr(model.backbone.layers[0].self_attn, name).weight.grad
        assert first is not None and float(first.abs().sum()) > 0
    assert not any(p.grad is not None and p.grad.isnan().any() for p in model.parameters())
    before = model(**inputs, labels=labels).loss.detach()
    torch.optim.SGD(model.backbone.layers.parameters(), lr=1e-3).step()
    assert model(**inputs, labels=labels).loss < before


def test_what_cannot_be_is_refused() -> None:
    model = pruned()
    inputs, labels = with_answers(model)
    with pytest.raises(gl.GlimpseError, match="Expected a prompt in front of the labels"):
        model(**inputs, labels=inputs["input_ids"])
    with pytest.raises(gl.GlimpseError, match=r"a placeholder \(token \d+\) follows it"):
        model(**inputs, labels=labels, prompt_length=2)
    with pytest.raises(gl.GlimpseError, match=r"`forward` does not know 'label'.*labels"):
        model(**inputs, label=labels)


def test_saving_means_the_pruner(tmp_path: Path) -> None:
    model = pruned()
    model.save_pretrained(tmp_path / "p")
    again = gl.PrunedVLM(model.backbone, gl.load_pruner(tmp_path / "p"))
    inputs = model.backbone.example_inputs(SIZES)
    assert torch.equal(again.prefill(**inputs).kept(), model.prefill(**inputs).kept())
    with pytest.raises(gl.GlimpseError, match=r"no pruner to save.*backbone\.model\.save_pretrained"):
        gl.PrunedVLM(model.backbone).save_pretrained(tmp_path / "q")
