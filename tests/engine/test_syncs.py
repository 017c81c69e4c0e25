"""The host waits for the device a fixed number of times in a prefill, however many layers the decoder has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import glimpse_lightning as gl
from glimpse_lightning.scorers import Scorer

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive}
INDEXING = {aten.index, aten.index_put, aten.index_put_}


class Syncs(TorchDispatchMode):
    """Counts what waits for a CUDA device: values that become Python numbers, shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        masked = packet in INDEXING and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        self.count += packet in WAITING or masked
        return func(*args, **(kwargs or {}))


def syncs(family: str, scorer: Callable[[], Scorer], layers: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(tiny_models.TEXT, "num_hidden_layers", layers)
    backbone = gl.wrap_backbone(tiny_models.FAMILIES[family]())
    assert backbone.facts.num_layers == layers
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(layers - 2, scorer(), gl.policies.KeepRatio(0.5))]))
    inputs = backbone.example_inputs([[(2, 4)]] * batch)
    prompt = backbone.embed(inputs, model.vision_layers)
    with Syncs() as found:
        model.prefill(prompt=prompt, **inputs)
    return found.count


def every_layer_vip() -> Scorer:
    return gl.scorers.VIP(attention_layers=[0, 1, 2], attention_dim=32, condition_dim=32, heads=2)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava"])
@pytest.mark.parametrize("scorer", [every_layer_vip, gl.scorers.AttentionRank, gl.scorers.Random])
def test_no_sync_per_layer(family: str, scorer: Callable[[], Scorer], monkeypatch: pytest.MonkeyPatch) -> None:
    few = syncs(family, scorer, 5, 2, monkeypatch)
    assert syncs(family, scorer, 9, 2, monkeypatch) == few
    assert syncs(family, scorer, 5, 5, monkeypatch) == few  # nor per sample


def test_vip_reading_every_layer_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    one = syncs("qwen2_5_vl", lambda: gl.scorers.VIP(attention_dim=32, condition_dim=32, heads=2), 5, 2, monkeypatch)
    assert syncs("qwen2_5_vl", every_layer_vip, 5, 2, monkeypatch) == one
