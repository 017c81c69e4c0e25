"""Glimpse tokens that ride in the main stream's calls of the layers see and score what those of a side stream do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.bench.training import training_batch
from glimpse_lightning.engine.prefill import PrefillOutput, run_prefill
from glimpse_lightning.engine.request import PrefillRequest
from glimpse_lightning.engine.shared_prefix import SharedPrefix
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.testing import SIZES


def vip(**kwargs: Any) -> gl.scorers.VIP:
    sizes = {"vision_layers": [1, 0], "attention_dim": 16, "condition_dim": 16, "heads": 2}
    return gl.scorers.VIP(**sizes, **kwargs)


def stage(layer: int, scorer: gl.scorers.Scorer, ratio: float, **options: Any) -> gl.PruneStage:
    return gl.PruneStage(layer, scorer, KeepRatio(ratio), **options)


PRUNERS: dict[str, Callable[[], list[gl.PruneStage]]] = {
    "one": lambda: [stage(1, vip(), 0.5)],
    "three tokens, all layers": lambda: [stage(1, vip(upstream={"glimpse_length": 3}, attention_layers="all"), 0.5)],
    "weights": lambda: [stage(1, vip(attention="log_softmax"), 0.5)],
    "and the last prompt token": lambda: [stage(1, vip(query="both", attention_layers="all"), 0.5)],
    "everything kept": lambda: [stage(1, vip(), 1.0)],
    "early keys kept": lambda: [stage(0, vip(), 0.5, early_kv="keep")],
    "renumbered": lambda: [stage(1, vip(), 0.5, positions="renumber")],
    "shared by two stages": lambda: [stage(0, vip(), 0.5), stage(1, vip(shares_glimpse=True), 0.5)],
    "shared, early keys kept": lambda: [
        stage(0, vip(), 0.5, early_kv="keep"), stage(1, vip(shares_glimpse=True), 0.5, early_kv="keep")
    ],
    "one for each stage": lambda: [stage(0, vip(), 0.5), stage(1, vip(upstream={"glimpse_length": 2}), 0.5)],
    "only for the second stage": lambda: [stage(0, gl.scorers.AttentionRank(), 0.5), stage(1, vip(), 0.5)],
    "beside a reader of keys": lambda: [gl.PruneStage(1, vip(), gl.policies.DART(0.5))],
    "beside raters": lambda: [stage(0, gl.scorers.TextRank(), 0.5), stage(1, vip(), 0.5)],
}  # fmt: skip


def check_equal(riding: PrefillOutput, beside: PrefillOutput) -> None:
    for mine, theirs in zip(riding.scores, beside.scores, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert [keep.tolist() for keep in riding.keep] == [keep.tolist() for keep in beside.keep]
    assert torch.equal(riding.prompt_keep, beside.prompt_keep)
    torch.testing.assert_close(riding.logits, beside.logits)
    for mine, theirs in zip(riding.cache.layers, beside.cache.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys)
        torch.testing.assert_close(mine.values, theirs.values)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PRUNERS)
def test_riding_changes_nothing(name: str, family: str) -> None:
    """With gradients wanted the glimpse is a side stream, without it rides; a batch with padding."""
    torch.manual_seed(0)
    backbone = gl.wrap_backbone(FAMILIES[family]().double())
    model = gl.PrunedVLM(backbone, gl.Pruner(PRUNERS[name]()))
    assert model.pruner is not None
    model.pruner.double().eval()
    with torch.no_grad():
        inputs = backbone.example_inputs(SIZES)
        taps = tuple(tap for each in model.pruner.stages for tap in each.requires.vision_layers)
        prompt = backbone.embed(inputs, tuple(dict.fromkeys(taps)))
    args = backbone, model.pruner, PrefillRequest(prompt, torch.arange(len(SIZES)), [""] * len(SIZES))
    with torch.no_grad():
        riding = run_prefill(*args)
    with torch.enable_grad():
        beside = run_prefill(*args)
    check_equal(riding, beside)


def test_a_shared_prefix_takes_the_glimpse_along() -> None:
    torch.manual_seed(0)
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]().double())
    model = gl.PrunedVLM(backbone, gl.Pruner([stage(1, vip(attention="log_softmax"), 0.5)]))
    assert model.pruner is not None
    model.pruner.double().eval()
    with torch.no_grad():
        prompt = backbone.embed(backbone.example_inputs([[(4, 4)]]), (1, 0)).repeated(3)
        prompt.embeds[1:, -1] += 0.1
        shared = SharedPrefix.of(backbone, prompt)
        assert shared is not None
        request = PrefillRequest(prompt, torch.arange(3), [""] * 3)
        together = run_prefill(backbone, model.pruner, replace(request, shared_prefix=shared))
        check_equal(together, run_prefill(backbone, model.pruner, request))


def calls_of_layers(backbone: Backbone, run: Callable[[], Any]) -> list[int]:
    """How often ``run`` calls each decoder layer."""
    calls = [0] * len(backbone.layers)

    def count(layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[layer] += 1

        return hook

    hooks = [module.register_forward_hook(count(layer)) for layer, module in enumerate(backbone.layers)]
    run()
    for hook in hooks:
        hook.remove()
    return calls


def test_layers_are_called_once() -> None:
    """What riding is for: no layer reads its weights for the glimpse alone."""
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    model = gl.PrunedVLM(backbone, gl.Pruner([stage(1, vip(), 0.5)]))
    calls = calls_of_layers(backbone, lambda: model.prefill(**backbone.example_inputs(SIZES)))
    assert calls == [1] * len(calls)


def test_glimpses_of_stages_that_have_scored_run_no_further() -> None:
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    model = gl.PrunedVLM(backbone, gl.Pruner([stage(0, vip(), 0.5), stage(2, vip(), 0.5)]))
    batch = training_batch(backbone, backbone.example_inputs(SIZES), 2)
    calls = calls_of_layers(backbone, lambda: model.glimpse_forward(batch))
    assert calls[:4] == [3, 2, 2, 0]  # the prompt, and each glimpse up to its stage
