"""Models built without memory and loaded share by share are those that Hugging Face loads whole."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from ranks import on_two_ranks
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import glimpse_lightning as gl
from glimpse_lightning.backbones.shares import empty_model, load_shares
from glimpse_lightning.model.sharding import shard
from glimpse_lightning.runtime.errors import GlimpseError

SIZES = [[(4, 4)]]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_loaded_later_is_loaded(family: str, tmp_path: Path) -> None:
    model = tiny_models.FAMILIES[family]()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    whole = gl.wrap_backbone(model)
    later = gl.wrap_backbone(empty_model(str(tmp_path), "float32", "sdpa"))
    assert all(parameter.is_meta for parameter in later.model.parameters())
    load_shares(later, str(tmp_path))
    inputs = whole.example_inputs(SIZES)
    # Not equal to the bit: kernels depend on where in memory a matrix begins.
    torch.testing.assert_close(
        gl.PrunedVLM(later).prefill(**inputs).logits, gl.PrunedVLM(whole).prefill(**inputs).logits
    )


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    model = tiny_models.llava()
    model.save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(GlimpseError, match="lacks"):
        load_shares(gl.wrap_backbone(empty_model(str(tmp_path), "float32", "sdpa")), str(tmp_path))


def _anonymous_mb() -> float:
    """Memory of this process that is not a mapped file."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def _loaded(folder: Path) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    before, peak, done = _anonymous_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _anonymous_mb() - before)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    backbone = gl.wrap_backbone(empty_model(str(folder), "float32", "sdpa"))
    backbone.model.requires_grad_(False)
    model = gl.PrunedVLM(backbone)
    shard(model, init_device_mesh("cpu", (2,)), fill=lambda: load_shares(backbone, str(folder)))
    logits = model.prefill(**backbone.example_inputs(SIZES)).logits
    done.set()
    watcher.join()
    return {"logits": logits, "peak": peak[0]}


@pytest.mark.slow
def test_no_rank_ever_holds_a_large_model(tmp_path: Path) -> None:
    text = tiny_models.TEXT | {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 16}
    text |= {"num_attention_heads": 16, "num_key_value_heads": 4, "initializer_range": 0.02}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 1024}
    config = Qwen2_5_VLConfig(text_config=text | rope, vision_config=vision, **tiny_models.QWEN)
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in Qwen2_5_VLForConditionalGeneration(config).state_dict().items()}
    for index, (name, shape) in enumerate(shapes.items()):
        value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02
        save_file({name: value}, tmp_path / f"model-{index:05}.safetensors")
    names = {name: f"model-{index:05}.safetensors" for index, name in enumerate(shapes)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    total = sum(shape.numel() for shape in shapes.values()) * 4 / 2**20
    assert total > 400
    ranks = on_two_ranks(_loaded, tmp_path, tmp_path)
    for rank in ranks:
        print(f"model {total:.0f} MB, peak of a rank {rank['peak']:.0f} MB")
        assert total / 2 < rank["peak"] < 0.9 * total  # its half, one gathered layer, and what the allocator holds back
    whole = gl.PrunedVLM(gl.wrap_backbone(Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)))
    logits = whole.prefill(**whole.backbone.example_inputs(SIZES)).logits
    torch.testing.assert_close(ranks[0]["logits"], logits, atol=1e-4, rtol=1e-4)
