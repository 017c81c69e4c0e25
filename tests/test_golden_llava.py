"""The whole model against the reference's numbers: GlimpsePrune's own weights over stock LLaVA-1.5."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from golden_numbers import GOLDEN, tensors
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import glimpse_lightning as gl
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.engine.stage_run import StageRun
from glimpse_lightning.objectives.losses import answer_loss, mask_loss

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
CASES = ("single", "max_remain_ratio")
IMAGE, TOKENS = 319, 25  # a token that no prompt uses stands for the reference's -200


def renamed(name: str) -> str:
    """A weight's name in transformers 5 from the reference's."""
    parts = {
        "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
        "vision_model.": "model.vision_tower.",
        "model.": "model.language_model.",
    }
    old = next((old for old in parts if name.startswith(old)), "")
    return parts.get(old, "") + name.removeprefix(old)


@cache
def golden_backbone() -> gl.Backbone:
    """The reference's base model as a stock transformers 5 model."""
    old = json.loads((GOLDEN / "llava" / "new_modules" / "config.json").read_text())
    text_fields = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size hidden_act "
        "rms_norm_eps max_position_embeddings pad_token_id bos_token_id eos_token_id"
    ).split()
    config = LlavaConfig(
        text_config=LlamaConfig(**{name: old[name] for name in text_fields}),
        vision_config=CLIPVisionConfig.from_pretrained(GOLDEN / "llava" / "clip_tower"),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    state = tensors("llava/base") | tensors("llava/clip_tower/model")
    model.load_state_dict({renamed(name): value for name, value in state.items()})
    model.generation_config.eos_token_id = None  # the reference decoded 8 tokens whatever they were
    return gl.wrap_backbone(model)


def expanded(ids: Tensor) -> Tensor:
    """``input_ids [1, L]`` of the reference with 25 placeholders in place of its one."""
    place = int((ids[0] == -200).nonzero())
    return torch.cat([ids[:, :place], ids.new_full((1, TOKENS), IMAGE), ids[:, place + 1 :]], 1)


def golden_inputs(name: str) -> dict[str, Tensor]:
    ids = expanded(tensors(f"llava/cases/{name}")["in.input_ids"])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": tensors("llava/images")["images"][:1],
    }


def golden_model(name: str = "single") -> gl.PrunedVLM:
    pruner = gl.load_pruner(GOLDEN / "llava" / "new_modules")
    if name == "max_remain_ratio":
        pruner.stages[0].policy = gl.policies.Threshold(max_ratio=0.111)
    return gl.PrunedVLM(golden_backbone(), pruner)


@pytest.mark.parametrize("name", CASES)
def test_prefill(name: str) -> None:
    case, model = tensors(f"llava/cases/{name}"), golden_model(name)
    out = model.prefill(**golden_inputs(name))
    torch.testing.assert_close(out.scores[0], case["vip_logits"][0, -1], **CLOSE)
    assert torch.equal(out.keep[0], case["keep_mask"][0])
    assert torch.equal(out.position_ids, case["pruned_position_ids"])
    assert torch.equal(out.attention_mask, case["pruned_attention_mask"])
    assert [layer.keys.shape[2] for layer in out.cache.layers] == case["kv_lens"].tolist()
    ids = golden_inputs(name)["input_ids"][out.prompt_keep]
    assert torch.equal(ids.where(ids != IMAGE, -200), case["pruned_input_ids"][0])
    expected = case["pruned_last_logits"] if "pruned_last_logits" in case else case["pruned_logits"][:, -1]
    torch.testing.assert_close(out.logits, expected, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_generation(name: str) -> None:
    case = tensors(f"llava/cases/{name}")
    out = golden_model(name).generate(
        **golden_inputs(name), max_new_tokens=8, output_logits=True, return_dict_in_generate=True
    )
    assert torch.equal(out.sequences, case["gen_tokens"])
    torch.testing.assert_close(torch.stack(list(out.logits), 1), case["gen_logits"], **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_unpruned(name: str) -> None:
    case = tensors(f"llava/cases/{name}")
    out = gl.PrunedVLM(golden_backbone()).prefill(**golden_inputs(name))
    expected = case["full_last_logits"] if "full_last_logits" in case else case["full_logits"][:, -1]
    torch.testing.assert_close(out.logits, expected, **CLOSE)


def training_batch() -> tuple[Batch, Tensor]:
    """The reference's stage-1 sample, and its mask: the one rectangle whose loss over its logits is its loss."""
    case = tensors("llava/cases/train_single")
    labels, ids = case["in.labels"][0], case["in.input_ids"]
    start = int((labels != -200).nonzero()[0])
    prompt, answer = expanded(ids[:, :start]), ids[:, start:]
    batch = Batch(
        inputs=golden_inputs("single") | {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)},
        answer_ids=answer,
        answer_mask=torch.ones_like(answer),
        key=torch.zeros(1, dtype=torch.long),
        weight=torch.ones(1),
        samples=[gl.Sample("golden", 0, "", [""])],
    )
    mask = torch.zeros(5, 5)
    mask[1:4, :3] = 1
    return batch, mask.flatten()


def test_training_scores_are_those_of_inference() -> None:
    """The reference's stage 1 normalises the glimpse's attention over answer tokens that inference never sees
    (algorithm.md section 8). Ours does not: what is trained is what runs.
    """
    batch, _ = training_batch()
    backbone = golden_backbone()
    backbone.model.requires_grad_(False)
    model = gl.PrunedVLM(backbone, gl.load_pruner(GOLDEN / "llava" / "new_modules"))
    (output,) = model.glimpse_forward(batch, answers=True)
    torch.testing.assert_close(output.scores, model.prefill(**batch.inputs).scores[0], **CLOSE)
    case = tensors("llava/cases/train_single")
    assert (output.scores - case["vip_logits"][0, -1]).abs().max() > 0.01, "the reference's mismatch is gone?"
    assert output.answer_logits is not None
    answers = answer_loss(output.answer_logits, batch.answer_ids, batch.answer_mask)
    torch.testing.assert_close(answers, case["le_loss"], **CLOSE)


def test_stage_one_step_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reference's normaliser put in: its logits, its losses and the norm of every gradient."""
    capture = StageRun.capture

    def over_answers(
        self: StageRun, name: str, probe: Any, layer: int, trunk: Any, row: Tensor, seen: Tensor, *gates: Any
    ) -> None:
        assert self.stream is not None
        capture(self, name, probe, layer, trunk, row, self.stream.mask, *gates)

    monkeypatch.setattr(StageRun, "capture", over_answers)
    case = tensors("llava/cases/train_single")
    batch, target = training_batch()
    # The reference's loss needs no prediction behind the last answer token, but its graph has the token as a key.
    last = torch.cat([batch.answer_ids, batch.answer_ids[:, :1]], 1)
    batch = replace(batch, answer_ids=last, answer_mask=torch.ones_like(last))
    backbone = golden_backbone()
    backbone.model.requires_grad_(False)
    model = gl.PrunedVLM(backbone, gl.load_pruner(GOLDEN / "llava" / "new_modules"))
    (output,) = model.glimpse_forward(batch, answers=True)
    assert output.answer_logits is not None
    torch.testing.assert_close(output.scores, case["vip_logits"][0, -1], **CLOSE)
    location = mask_loss(output.scores, target, output.tokens.sample, 1, dice_weight=1.0, bce_weight=0.1)
    real = torch.tensor([[1] * (last.shape[1] - 1) + [0]])
    answers = answer_loss(output.answer_logits, batch.answer_ids, real)
    torch.testing.assert_close(location, case["loc_loss"], **CLOSE)
    torch.testing.assert_close(answers, case["le_loss"], **CLOSE)
    torch.testing.assert_close(location + answers, case["total"], **CLOSE)
    (location + answers).backward()
    scorer = model.pruner.stages[0].scorer
    names = {"attn_fuser.": "network.", "learnable_embeddings": "glimpse.embeddings", "le_": "glimpse."}
    for name, expected in case.items():
        if name.startswith("gradnorm."):
            name = name.removeprefix("gradnorm.")
            prefix = next(old for old in names if name.startswith(old))
            grad = scorer.get_parameter(names[prefix] + name.removeprefix(prefix)).grad
            torch.testing.assert_close(grad.norm(), expected, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")
