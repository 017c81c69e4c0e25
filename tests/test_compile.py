"""``torch.compile`` sees decoding, and VIP, as one graph each: nothing of ours breaks it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from torch._dynamo.utils import counters
from transformers import CompileConfig

import glimpse_lightning as gl


@pytest.fixture
def setting() -> Any:
    torch._dynamo.reset()
    counters.clear()
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    scorer = gl.scorers.VIP(vision_layers=[1, 0], attention_dim=16, condition_dim=16, heads=2)
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, scorer, gl.policies.KeepRatio(0.4))]))
    yield model, scorer, backbone.example_inputs([[(4, 4)], [(4, 4)]])
    torch._dynamo.reset()


def test_decoding_on_a_static_cache_is_one_graph(setting: Any) -> None:
    model, _, inputs = setting
    length = {"max_new_tokens": 4, "min_new_tokens": 4}
    want = model.generate(**inputs, **length)
    config = CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True  # on CUDA, Hugging Face compiles for static caches unasked
    assert torch.equal(model.generate(**inputs, **length, cache_implementation="static", compile_config=config), want)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_vip_is_one_graph(setting: Any) -> None:
    model, scorer, inputs = setting
    (want,) = model.prefill(**inputs).scores
    scorer.network.compile(backend="eager")
    (compiled,) = model.prefill(**inputs).scores
    torch.testing.assert_close(compiled, want)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
