"""What cannot be loaded is refused from config.json, before a processor or weights are read, with a remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.backbones import load, support
from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.training.module import PruningModule

Folder = Callable[..., str]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Makes a folder, by its name, that holds a config.json alone; reading more than that fails."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("the processor or the weights were read")

    def make(name: str, **config: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    monkeypatch.setattr(load, "load_processor", read)
    monkeypatch.setattr(load.AutoModelForImageTextToText, "from_pretrained", read)
    return make


@pytest.mark.parametrize(
    ("name", "architecture", "model_type", "nearest"),
    [
        ("llava-v1.5-13b", "LlavaLlamaForCausalLM", "llava", "llava-hf/llava-1.5-13b-hf"),
        ("llava-v1.5-7b", "LlavaLlamaForCausalLM", "llava_llama", "llava-hf/llava-1.5-7b-hf"),
        ("llava-v1.6-34b", "LlavaLlamaForCausalLM", "llava", "llava-hf/llava-v1.6-34b-hf"),
        ("llava-v1.6-mistral-7b", "LlavaMistralForCausalLM", "llava_mistral", "llava-hf/llava-v1.6-mistral-7b-hf"),
        ("llava-onevision-qwen2-7b-ov", "LlavaQwenForCausalLM", "llava", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
        ("InternVL3-8B", "InternVLChatModel", "internvl_chat", "OpenGVLab/InternVL3-8B-hf"),
        ("InternVL3_5-4B", "InternVLChatModel", "internvl_chat", "OpenGVLab/InternVL3_5-4B-HF"),
        ("Qwen-VL-Chat", "QWenLMHeadModel", "qwen", "Qwen/Qwen2.5-VL-"),
        ("Qwen2.5-Omni-7B", "Qwen2_5OmniModel", "qwen2_5_omni", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ],
)
def test_layouts_of_authors_own_code_lead_to_the_one_that_loads(
    checkpoint: Folder, name: str, architecture: str, model_type: str, nearest: str
) -> None:
    """Those with code of their own (`auto_map`) neither run it nor ask whether to."""
    folder = checkpoint(name, architectures=[architecture], model_type=model_type, auto_map={"AutoConfig": "a.B"})
    with pytest.raises(gl.GlimpseError) as caught:
        gl.load_backbone(folder)
    assert f"No backbone adapter for {architecture}, the architecture of {folder!r}" in str(caught.value)
    assert f"The nearest checkpoint that loads is {nearest}" in str(caught.value)
    assert "docs/your_own_model.md" in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2"},
        {"architectures": ["MiniCPMV"], "model_type": "minicpmv", "auto_map": {"AutoConfig": "a.B"}},
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        {"architectures": ["SomeVLForConditionalGeneration"], "model_type": "of_next_year"},
        {"model_type": "blip-2"},
        {"architectures": ["Qwen2_5_VLModel"], "model_type": "qwen2_5_vl"},
    ],
)
def test_other_architectures_are_named_with_those_that_load(checkpoint: Folder, config: dict[str, Any]) -> None:
    folder = checkpoint("stranger", **config)
    with pytest.raises(gl.GlimpseError, match=r"No backbone adapter for .*Supported: Gemma3.*your_own_model\.md"):
        gl.load_backbone(folder)


@pytest.mark.parametrize(
    ("more", "said"), [({}, True), ({"vision_config": {}}, False), ({"mm_vision_tower": "x"}, False)]
)
def test_language_models_have_no_visual_tokens(checkpoint: Folder, more: dict[str, Any], said: bool) -> None:
    folder = checkpoint("words", architectures=["Qwen2ForCausalLM"], model_type="qwen2", **more)
    with pytest.raises(gl.GlimpseError) as caught:
        gl.load_backbone(folder)
    assert ("It has no vision tower" in str(caught.value)) == said


@pytest.mark.parametrize("architecture", support.UNFIT)
def test_what_does_not_fit_is_refused_by_name(checkpoint: Folder, architecture: str) -> None:
    with pytest.raises(gl.GlimpseError, match=f"Unsupported architecture {architecture}: its? "):
        gl.load_backbone(checkpoint("unfit", architectures=[architecture]))


@pytest.mark.parametrize("architecture", [None, "Qwen2_5_VLForConditionalGeneration", "MyForConditionalGeneration"])
def test_supported_ones_pass_and_so_do_subclasses_of_a_users_own(architecture: str | None) -> None:
    support.check_checkpoint("x", {"model_type": "qwen2_5_vl", "architectures": architecture and [architecture]})


@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_quantized_checkpoints_are_refused_by_their_method(checkpoint: Folder, method: str) -> None:
    quantized = {"quantization_config": {"quant_method": method}}
    folder = checkpoint("Qwen2.5-VL-7B", architectures=["Qwen2_5_VLForConditionalGeneration"], **quantized)
    with pytest.raises(gl.GlimpseError, match=rf"is quantized by {method}, .*those of bitsandbytes load"):
        gl.load_backbone(folder)


def test_checkpoints_of_bitsandbytes_need_its_extra_and_no_second_quantization(
    checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("bnb", model_type="qwen2_5_vl", quantization_config={"quant_method": "bitsandbytes"})
    monkeypatch.setattr(support, "find_spec", lambda _: None)
    with pytest.raises(gl.GlimpseError, match=r"needs bitsandbytes and accelerate: `pip install .*\[quantization\]"):
        gl.load_backbone(folder)
    with pytest.raises(gl.GlimpseError, match="is quantized already, by bitsandbytes; leave `quantization='bnb-4bit'`"):
        gl.load_backbone(folder, quantization="bnb-4bit")


@pytest.mark.parametrize("saved", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_loaded_as_they_were_saved(tmp_path: Path, saved: torch.dtype) -> None:
    FAMILIES["llava"]().to(saved).save_pretrained(tmp_path)
    assert gl.load_backbone(str(tmp_path), dtype=None).model.dtype == saved
    assert gl.load_backbone(str(tmp_path)).model.dtype == torch.float32  # whatever was saved, unless asked
    config = json.loads((tmp_path / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as checkpoints of transformers 4 say it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert gl.load_backbone(str(tmp_path), dtype=None).model.dtype == saved
    module = PruningModule(backbone=str(tmp_path))
    module.configure_model()
    assert module.model.dtype == saved


def test_what_needs_no_download_stays_in_float32() -> None:
    assert gl.load_backbone("glimpse-tiny", dtype=None).model.dtype == torch.float32
    assert gl.load_backbone("random:smolvlm-256m", dtype=None, device_map="meta").model.dtype == torch.float32


def test_a_model_that_is_trained_itself_is_loaded_in_float32(tmp_path: Path) -> None:
    """AdamW's steps would be lost in bfloat16; adapters are float32 anyway, and what is asked for is done."""
    FAMILIES["llava"]().to(torch.bfloat16).save_pretrained(tmp_path)
    whole, adapters = gl.objectives.Supervised(), gl.objectives.Supervised(lora=LoRA())
    expected = [(whole, None, "float32"), (adapters, None, None), (whole, "bfloat16", "bfloat16")]
    for objective, asked, dtype in expected:
        module = PruningModule(backbone=str(tmp_path), dtype=asked, objective=objective)
        assert module.backbone_options["dtype"] == dtype


def test_quantized_weights_are_not_shared_out(tmp_path: Path) -> None:
    from glimpse_lightning.backbones.shares import load_shares

    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    backbone.model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(gl.GlimpseError, match=r"is quantized, .*`trainer.strategy: ddp`"):
        load_shares(backbone, str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("architectures", "LlavaForConditionalGeneration", "a list of class names"),
        ("architectures", [1], "a list of class names"),
        ("model_type", ["llava"], "a name"),
        ("quantization_config", "awq", "fields by name"),
        ("text_config", 3, "fields by name"),
        ("dtype", "float8_e4m3fn", "one of auto, bfloat16"),
        ("torch_dtype", {"text_config": "bfloat16"}, "one of auto, bfloat16"),
    ],
)
def test_a_field_of_another_kind_is_named(field: str, value: object, wanted: str, tmp_path: Path) -> None:
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(gl.GlimpseError, match=rf"expected `{field}` in its config.json to be {re.escape(wanted)}"):
        gl.load_backbone(str(tmp_path))


@pytest.mark.parametrize("text", ["[1]", "null", "3"])
def test_a_file_without_fields_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(gl.GlimpseError, match=re.escape(str(tmp_path))):
        gl.load_backbone(str(tmp_path))


def test_quantized_text_is_found() -> None:
    config = {"model_type": "llava", "text_config": {"quantization_config": {"quant_method": "gptq"}}}
    with pytest.raises(gl.GlimpseError, match="quantized by gptq"):
        support.check_checkpoint("it", config)
    config = {"model_type": "llava", "quantization_config": {"quant_method": None, "bits": 4}}
    with pytest.raises(gl.GlimpseError, match="quantized by an unknown method"):
        support.check_checkpoint("it", config)
