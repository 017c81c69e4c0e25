"""Layers whose rows see a window of columns only: what is out of sight has no weight in what scorers read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.engine.stage_run import log_weights
from glimpse_lightning.scorers.base import UNSEEN
from glimpse_lightning.testing import SIZES

WINDOWED = ("gemma3", "llava_next")
"""Tiny models with windows shorter than prompts."""


def windowed(family: str) -> Backbone:
    """In eager attention, which gives its weights away."""
    return gl.wrap_backbone(FAMILIES[family]("eager"))


def weights(backbone: Backbone, inputs: dict[str, Any], layer: int) -> Tensor:
    """``[B, H, N, N]`` Hugging Face's own attention weights of a layer."""
    found: list[Tensor] = []
    attention = backbone.layers[layer].self_attn
    handle = attention.register_forward_hook(lambda module, args, out: found.append(out[1]))
    with torch.no_grad():
        backbone.model(**backbone.hf_inputs(inputs), use_cache=False)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("family", WINDOWED)
@pytest.mark.parametrize("scorer", [gl.scorers.AttentionRank, gl.scorers.TextRank])
def test_scores_are_the_models_own_attention(family: str, scorer: Any) -> None:
    """Of the last row; or of the text behind the image, averaged, where all of it rates."""
    backbone = windowed(family)
    inputs = backbone.example_inputs([max(SIZES, key=lambda sizes: sum(h * w for h, w in sizes))])
    layer = next(i for i in range(len(backbone.layers)) if backbone.window(i) is not None)
    made = scorer() if scorer is gl.scorers.AttentionRank else scorer(select=False)
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(layer, made, gl.policies.KeepRatio(0.5))]))
    scores = model.prefill(**inputs).scores[0]
    visual = backbone.embed(inputs).visual[0]
    seen = weights(backbone, inputs, layer)[0].mean(0)
    text = ~visual & (visual.cumsum(0) > 0)
    wanted = (seen[-1] if scorer is gl.scorers.AttentionRank else seen[text].mean(0))[visual]
    assert (seen[-1][visual] == 0).any()  # the window does narrow
    torch.testing.assert_close(scores.exp(), wanted, atol=1e-6, rtol=1e-4)
    assert scores.min() >= UNSEEN - 1e-3


@pytest.mark.parametrize("query", ["glimpse", "last"])
def test_glimpses_ride_as_they_stand_aside(query: str) -> None:
    """In the main stream's tail and in a stream of their own a glimpse sees the same; and scores stay numbers."""
    backbone = windowed("gemma3")
    torch.manual_seed(0)
    scorer = gl.scorers.VIP(
        vision_layers=[1], attention_dim=16, condition_dim=16, heads=2, attention="log_softmax", query=query
    )
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(2, scorer, gl.policies.Threshold(0.5))]))
    inputs = backbone.example_inputs(SIZES)
    riding = model.prefill(**inputs).scores[0]
    batch = Batch(inputs, torch.zeros(4, 1).long(), torch.zeros(4, 1), torch.arange(4), torch.ones(4), [])
    (aside,) = model.glimpse_forward(batch)
    torch.testing.assert_close(riding, aside.scores.detach(), atol=1e-4, rtol=1e-4)
    assert riding.abs().max() < 20


def test_weights_behind_soft_gates() -> None:
    """Each key's weight is the one of a softmax in which the others are gated and it is not."""
    torch.manual_seed(0)
    logits, gates = 3 * torch.randn(2, 3, 7), torch.rand(2, 5)
    gates[0, 1], gates[1, 2:4] = 0.0, 1.0
    seen = torch.ones(2, 1, 7, dtype=torch.bool)
    seen[1, :, 4] = False
    bias = gates.log().clamp(min=-1e4).requires_grad_()
    found = log_weights(logits, seen, bias)
    found.masked_fill(~seen, 0.0).sum().backward()
    assert bias.grad is not None and bias.grad.isfinite().all()
    for row, key in ((row, key) for row in range(2) for key in range(7)):
        gate = torch.cat([gates[row], torch.ones(2)])
        gate[key] = 1.0
        mass = logits[row].exp() * gate * seen[row]
        wanted = (mass[:, key] / mass.sum(-1)).log()
        torch.testing.assert_close(found[row, :, key], wanted, atol=1e-5, rtol=1e-5)
