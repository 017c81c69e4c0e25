"""The whole model against the reference's numbers: GlimpsePrune's own weights over stock Qwen2.5-VL."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_numbers import CASES, GOLDEN, cases, tensors
from plain_reference import plain_forward
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import glimpse_lightning as gl
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.objectives.losses import answer_loss, mask_loss

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
SPECIAL = (
    "image_token_id video_token_id vision_start_token_id vision_end_token_id tie_word_embeddings bos_token_id "
    "eos_token_id pad_token_id"
).split()
VISION_FIELDS = "in_chans model_type".split()


@cache
def golden_backbone() -> gl.Backbone:
    """The reference's base model (transformers 4.51 names and configuration) as a stock transformers 5 model."""
    old = json.loads((GOLDEN / "base" / "config.json").read_text())
    vision = {name: value for name, value in old["vision_config"].items() if name not in VISION_FIELDS}
    text_fields = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size hidden_act "
        "rms_norm_eps max_position_embeddings pad_token_id bos_token_id eos_token_id"
    ).split()
    text = {name: old[name] for name in text_fields}
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": old["rope_theta"],
        "mrope_section": old["rope_scaling"]["mrope_section"],
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **{name: old.get(name) for name in SPECIAL})
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    state = {}
    for name, value in tensors("base/model").items():
        new = name.replace("visual.", "model.visual.") if name.startswith("visual.") else name
        state[new.replace("model.", "model.language_model.") if name.startswith("model.") else new] = value
    model.load_state_dict(state)
    model.generation_config.eos_token_id = None  # the reference decoded 8 tokens whatever they were
    return gl.wrap_backbone(model)


def golden_inputs(name: str) -> dict[str, Tensor]:
    case, ids, images = cases()[name], tensors("inputs"), tensors("images")
    prefix = case["inputs"]
    pixels = torch.cat([images[f"{image}.pixel_values"] for image in case["images"]])
    return {
        "input_ids": ids[f"{prefix}.input_ids"],
        "attention_mask": ids[f"{prefix}.attention_mask"],
        "image_grid_thw": ids[f"{prefix}.image_grid_thw"],
        "pixel_values": pixels,
    }


def golden_model(name: str = "a_single") -> gl.PrunedVLM:
    pruner = gl.load_pruner(GOLDEN / "new_modules" / "main")
    overrides = cases()[name]["overrides"]
    pruner.stages[0].policy = gl.policies.Threshold(
        threshold=overrides.get("reduce_threshold", 0.5),
        max_ratio=overrides.get("max_remain_ratio"),
        min_tokens=overrides.get("min_remain_num", 1),
    )
    return gl.PrunedVLM(golden_backbone(), pruner)


@pytest.mark.parametrize("name", CASES)
def test_prefill(name: str) -> None:
    case, model = tensors(f"cases/{name}"), golden_model(name)
    out = model.prefill(**golden_inputs(name))
    torch.testing.assert_close(out.scores[0], case["vip_logits"][-1], **CLOSE)
    assert torch.equal(out.keep[0], case["keep_mask"].bool())
    assert torch.equal(out.prompt_keep, case["remain_mask"].bool())
    mask = case["pruned_attention_mask"].bool()
    assert torch.equal(out.attention_mask.bool(), mask)
    assert torch.equal(out.position_ids[:, mask], case["pruned_position_ids"][:, mask])
    assert [layer.keys.shape[2] for layer in out.cache.layers] == case["kv_lens"].tolist()
    torch.testing.assert_close(out.logits, case["pruned_last_logits"].view_as(out.logits), **CLOSE)
    if "kv_keys" in case:
        real = mask[:, None, :, None]
        for layer, keys, values in zip(out.cache.layers, case["kv_keys"], case["kv_values"], strict=True):
            torch.testing.assert_close(layer.keys * real, keys * real, **CLOSE)
            torch.testing.assert_close(layer.values * real, values * real, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_generation(name: str) -> None:
    """Greedy tokens and their logits; in a batch those of the single-sample runs (algorithm.md section 4, Batch)."""
    case, model = tensors(f"cases/{name}"), golden_model(name)
    inputs = golden_inputs(name)
    out = model.generate(**inputs, max_new_tokens=8, output_logits=True, return_dict_in_generate=True)
    logits = torch.stack(list(out.logits), 1)
    rows = range(len(inputs["input_ids"]))
    alone = "row0.gen_tokens" in case
    tokens = torch.cat([case[f"row{row}.gen_tokens"].view(1, -1) for row in rows]) if alone else case["gen_tokens"]
    assert torch.equal(out.sequences, tokens)
    if not alone:
        torch.testing.assert_close(logits, case["gen_logits"], **CLOSE)
    elif "row0.gen_logits" in case:
        expected = torch.stack([case[f"row{row}.gen_logits"].view_as(logits[0]) for row in rows])
        torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("overrides", [{}, {"max_remain_ratio": 0.111, "min_remain_num": 3}, {"reduce_layer": 1000}])
@pytest.mark.parametrize("prefix", ["multi", "bmulti"])
def test_inputs_with_several_images(tmp_path: Path, prefix: str, overrides: dict[str, Any]) -> None:
    """Prompts and pictures whose numbers are kept apart: the reference's weights by a second implementation."""
    source, images = GOLDEN / "new_modules" / "main", tensors("images")
    config = json.loads((source / "config.json").read_text()) | overrides
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "new_modules_gp.pt", tmp_path)
    saved = torch.load(source / "new_modules_gp.pt", weights_only=True)
    ids, mask, grid = (tensors("inputs")[f"{prefix}.{n}"] for n in ("input_ids", "attention_mask", "image_grid_thw"))
    known = {images[f"img{i}.image_grid_thw"][0].tolist()[1]: images[f"img{i}.pixel_values"] for i in range(3)}
    pixels = [known[height] for _, height, _ in grid.tolist()]
    backbone = golden_backbone()
    out = gl.PrunedVLM(backbone, gl.load_pruner(tmp_path)).prefill(
        input_ids=ids, attention_mask=mask, image_grid_thw=grid, pixel_values=torch.cat(pixels)
    )
    begun = (ids == backbone.model.config.vision_start_token_id).sum(1).tolist()
    for row, mine in enumerate(torch.arange(len(grid)).split(begun)):
        alone = {
            "input_ids": ids[row : row + 1, mask[row].bool()],
            "image_grid_thw": grid[mine],
            "pixel_values": torch.cat([pixels[image] for image in mine]),
        }
        expected, here = plain_forward(backbone, config, saved, alone), out.tokens.sample == row
        torch.testing.assert_close(out.scores[0][here], expected.rows[-1], **CLOSE)
        assert torch.equal(out.keep[0][here], expected.keep)
        torch.testing.assert_close(out.logits[row], expected.logits, **CLOSE)


@pytest.mark.parametrize("name", ["a_single", "c_batch2_leftpad"])
def test_unpruned(name: str) -> None:
    case = tensors(f"cases/{name}")
    out = gl.PrunedVLM(golden_backbone()).prefill(**golden_inputs(name))
    expected = case["full_last_logits"] if "full_last_logits" in case else case["full_logits"][:, -1]
    torch.testing.assert_close(out.logits, expected.view_as(out.logits), **CLOSE)


def test_stage_one_step_and_gradients() -> None:
    """Glimpse between prompt and answer, answer loss + mask loss, and the gradient of every new parameter."""
    case, images = tensors("losses/train_single"), tensors("images")
    labels, ids = case["in.labels"][0], case["in.input_ids"]
    start = int((labels != -100).nonzero()[0])
    answer = ids[:, start:]
    batch = Batch(
        inputs={
            "input_ids": ids[:, :start],
            "attention_mask": case["in.attention_mask"][:, :start],
            "image_grid_thw": case["in.image_grid_thw"],
            "pixel_values": images["img0.pixel_values"],
        },
        answer_ids=answer,
        answer_mask=torch.ones_like(answer),
        key=torch.zeros(1, dtype=torch.long),
        weight=torch.ones(1),
        samples=[gl.Sample("golden", 0, "", [""])],
    )
    backbone = golden_backbone()
    backbone.model.requires_grad_(False)
    model = gl.PrunedVLM(backbone, gl.load_pruner(GOLDEN / "new_modules" / "main"))
    (output,) = model.glimpse_forward(batch, answers=True)
    assert output.answer_logits is not None
    torch.testing.assert_close(output.scores, case["out.vip_logits"][-1], **CLOSE)
    target = case["in.ref_token_masks0"].flatten()
    location = mask_loss(output.scores, target, output.tokens.sample, 1, dice_weight=1.0, bce_weight=0.1)
    answers = answer_loss(output.answer_logits, batch.answer_ids, batch.answer_mask)
    torch.testing.assert_close(location, case["out.loc_loss"], **CLOSE)
    torch.testing.assert_close(answers, case["out.le_loss"], **CLOSE)
    (location + answers).backward()
    scorer = model.pruner.stages[0].scorer
    names = {"attn_fuser.": "network.", "learnable_embeddings": "glimpse.embeddings", "le_": "glimpse."}
    for name, expected in case.items():
        if name.startswith("out.grad."):
            name = name.removeprefix("out.grad.")
            prefix = next(old for old in names if name.startswith(old))
            grad = scorer.get_parameter(names[prefix] + name.removeprefix(prefix)).grad
            torch.testing.assert_close(grad, expected, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")
