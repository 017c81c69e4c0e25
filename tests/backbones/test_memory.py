"""What is never made: an N x N map, logits of more than the last position, vision states nobody asked for."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import glimpse_lightning as gl
from glimpse_lightning.bench.inputs import make_inputs
from glimpse_lightning.latency.memory import peak_bytes

VIP = {"attention_dim": 16, "condition_dim": 16, "heads": 2}


class Shapes(TorchDispatchMode):
    """Shapes of everything any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {tuple(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        return out


def pruner(*scorers: gl.scorers.Scorer) -> gl.Pruner:
    return gl.Pruner([gl.PruneStage(1, scorer, gl.policies.KeepRatio(0.5)) for scorer in scorers])


@pytest.fixture(params=FAMILIES)
def backbone(request):
    return gl.wrap_backbone(FAMILIES[request.param]("sdpa"))


def test_no_map_of_the_prompt_is_made(backbone):
    """One unpadded prompt, so that the kernel needs no mask either; probes of two kinds look at attention."""
    inputs = backbone.example_inputs([[(5, 7), (4, 4)]])
    words = torch.randint(20, 100, (1, 150))  # more columns than any of the model's widths
    inputs["input_ids"] = torch.cat([words, inputs["input_ids"]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    model = gl.PrunedVLM(backbone, pruner(gl.scorers.AttentionRank(), gl.scorers.VIP(**VIP)))
    with Shapes() as shapes:
        out = model.prefill(**inputs)
    for columns in (inputs["input_ids"].shape[1], out.attention_mask.shape[1]):
        assert any(columns in shape for shape in shapes.seen)
        # +1: a glimpse token beside the prompt reads one column more.
        maps = {s for s in shapes.seen if sum(columns <= size <= columns + 1 for size in s) > 1}
        windows = any(backbone.window(layer) is not None for layer in range(len(backbone.layers)))
        if backbone.bidirectional_images or windows:  # its mask has to be made, once for all heads, as by Hugging Face
            maps = {s for s in maps if len(s) == 4 and s[1] > 1}
        assert not maps


def test_logits_of_the_last_position_only(backbone):
    inputs, seen = backbone.example_inputs([[(5, 7)], [(2, 2)]]), []
    hook = backbone.lm_head.register_forward_hook(lambda _, args, out: seen.append(tuple(out.shape)))
    try:
        gl.PrunedVLM(backbone, pruner(gl.scorers.AttentionRank())).prefill(**inputs)
    finally:
        hook.remove()
    assert seen == [(2, backbone.text_config.vocab_size)]


def test_vision_states_only_if_a_scorer_asks(backbone, monkeypatch):
    inputs, hooked = backbone.example_inputs([[(5, 7)]]), []
    backbone.embed(inputs)  # a model's own hooks are hung up the first time it runs
    for index, block in enumerate(backbone.vision_blocks):
        register = block.register_forward_hook

        def spy(hook: Any, index: int = index, register: Any = register) -> Any:
            hooked.append(index)
            return register(hook)

        monkeypatch.setattr(block, "register_forward_hook", spy)
    gl.PrunedVLM(backbone, pruner(gl.scorers.AttentionRank(), gl.scorers.Random())).prefill(**inputs)
    assert hooked == []
    gl.PrunedVLM(backbone, pruner(gl.scorers.VIP(vision_layers=[2, 0], **VIP))).prefill(**inputs)
    assert hooked == [2, 0]


@pytest.mark.parametrize("sizes", [(96, 192, 384), pytest.param((512, 1024, 2048), marks=pytest.mark.slow)])
@torch.no_grad()
def test_peak_memory_of_a_batch_grows_linearly(sizes):
    """Eight samples at growing visual tokens: a further token costs as much as any before, so nothing is a square."""
    backbone = gl.load_backbone("random:mid-qwen2.5-vl")
    stage = gl.PruneStage(3, gl.scorers.VIP(attention_dim=16, condition_dim=16, heads=1), gl.policies.KeepRatio(0.1))
    model = gl.PrunedVLM(backbone, gl.Pruner([stage]))
    peaks = []
    for visual in sizes:
        inputs = make_inputs(backbone, 8, visual, 16)
        prompt = backbone.embed(inputs, model.vision_layers)
        peaks.append(peak_bytes(partial(model.prefill, prompt=prompt, **inputs), torch.device("cpu")))
    first, second = ((peaks[i + 1] - peaks[i]) / (sizes[i + 1] - sizes[i]) for i in (0, 1))  # bytes a further token
    assert second == pytest.approx(first, rel=0.1)
