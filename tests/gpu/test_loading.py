"""Published sizes with random weights, and quantized ones, made on the device."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from devices import CUDA, ON_CUDA, PRETENDED, entered

import glimpse_lightning as gl
from glimpse_lightning.backbones.presets import PRESETS

LARGE = {"qwen2.5-vl-32b", "qwen2.5-vl-72b", "llava-1.5-13b"}
CASES = [
    (PRETENDED, "mid-qwen2.5-vl"),
    pytest.param(PRETENDED, "mid-smolvlm", marks=pytest.mark.slow),
    *(pytest.param(CUDA, name, marks=ON_CUDA) for name in PRESETS if name not in LARGE),
]


@pytest.mark.parametrize(("where", "preset"), CASES)
@torch.no_grad()
def test_presets(where: str, preset: str) -> None:
    """Keep-all is Hugging Face's own forward, and a pruned prompt is answered."""
    with entered(where):
        backbone = gl.load_backbone(f"random:{preset}", dtype="bfloat16", device_map="cuda")
        assert {weight.device.type for weight in backbone.model.parameters()} == {"cuda"}
        inputs = backbone.example_inputs([[(8, 8)]])
        want = backbone.model(**backbone.hf_inputs(inputs), logits_to_keep=1).logits[:, -1].float()
        for ratio in (1.0, 0.2):
            stage = gl.PruneStage(2, gl.scorers.AttentionRank(), gl.policies.KeepRatio(ratio))
            model = gl.PrunedVLM(backbone, gl.Pruner([stage]))
            out = model.prefill(**inputs)
            if ratio == 1:
                torch.testing.assert_close(out.logits.float(), want, atol=0.05, rtol=0.05)
        assert model.generate(prefill=out, max_new_tokens=3, min_new_tokens=3).shape == (1, 3)
        assert int(out.kept().sum()) < len(out.kept()) / 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("quantization", ["bnb-4bit", "bnb-8bit"])
@torch.no_grad()
def test_quantized(quantization: str) -> None:
    backbone = gl.load_backbone("glimpse-tiny", quantization=quantization, device_map="cuda")
    stage: Any = gl.PruneStage(2, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.3))
    model = gl.PrunedVLM(backbone, gl.Pruner([stage]))
    batch = backbone.collate([gl.GlyphVQA("val", image_size=224)[0]])
    assert model.generate(**batch.inputs, max_new_tokens=3, min_new_tokens=3).shape == (1, 3)
