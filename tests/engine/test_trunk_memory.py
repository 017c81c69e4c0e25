"""A conversation's tokens run once through the layers before the first stage, and later turns come out the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.engine.prefill import PrefillOutput, run_prefill
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.request import PrefillRequest
from glimpse_lightning.engine.trunk_memory import TrunkMemory

SIZES = [[(4, 4), (3, 2)]]
AFTER = 1
SCORERS = {
    "attention": lambda: gl.scorers.AttentionRank(),
    "glimpse": lambda: gl.scorers.VIP([1], [0, 1], attention_dim=16, condition_dim=16, heads=2),
    "text rows": lambda: gl.scorers.VIP(
        [1], [0, 1], attention_dim=16, condition_dim=16, heads=2, query=["last", "text"]
    ),
    "chosen text rows": lambda: gl.scorers.TextRank(),
    "text states": lambda: gl.scorers.LateInteraction(attention_layers="all"),
    "keys": lambda: gl.scorers.QuestionRelevance(),
}


def until(prompt: Prompt, width: int) -> Prompt:
    """The prompt's first ``width`` columns, in which all its images are."""
    assert not prompt.visual[:, width:].any()
    embeds, mask, visual = prompt.embeds[:, :width], prompt.mask[:, :width], prompt.visual[:, :width]
    return replace(prompt, embeds=embeds, mask=mask, visual=visual, position_ids=prompt.position_ids[..., :width])


def longer(prompt: Prompt, columns: int, seed: int) -> Prompt:
    """The prompt and ``columns`` of text after it."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, columns, prompt.embeds.shape[-1], generator=generator) * prompt.embeds.std()
    steps = torch.arange(1, columns + 1)
    return replace(
        prompt,
        embeds=torch.cat([prompt.embeds, rows], 1),
        mask=torch.cat([prompt.mask, torch.ones(1, columns, dtype=torch.bool)], 1),
        visual=torch.cat([prompt.visual, torch.zeros(1, columns, dtype=torch.bool)], 1),
        position_ids=torch.cat([prompt.position_ids, prompt.position_ids[..., -1:] + steps], -1),
    )


def prefill(backbone: Backbone, pruner: gl.Pruner | None, prompt: Prompt, memory: TrunkMemory | None) -> PrefillOutput:
    return run_prefill(backbone, pruner, PrefillRequest(prompt, torch.tensor([3]), shared_prefix=memory))


def assert_same(one: PrefillOutput, other: PrefillOutput) -> None:
    assert torch.equal(one.kept(), other.kept())
    for a, b in zip(tensors(one), tensors(other), strict=True):
        assert torch.allclose(a, b, atol=1e-4, rtol=1e-4)


def tensors(out: PrefillOutput) -> list[Tensor]:
    cached = [states for layer in out.cache.layers for states in (layer.keys, layer.values)]
    scores = [score[score > -torch.inf] for score in out.scores]
    return [out.logits, *scores, *cached]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*SCORERS, "no pruner", "before the decoder", "two stages"])
@torch.no_grad()
def test_a_later_turn_equals_a_prefill_of_all_turns(family: str, name: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family]())
    pruner = None
    if name == "before the decoder":
        pruner = gl.Pruner([gl.PruneStage(-1, gl.scorers.VisionRank(), gl.policies.KeepRatio(0.4))])
    elif name != "no pruner":
        scorer = SCORERS.get(name, SCORERS["attention"])()
        stages = [gl.PruneStage(AFTER, scorer, gl.policies.KeepRatio(0.4))]
        if name == "two stages":
            last = gl.PruneStage(AFTER + 1, SCORERS["text states"](), gl.policies.KeepRatio(0.2), early_kv="keep")
            stages.append(last)
        pruner = gl.Pruner(stages)
    model = gl.PrunedVLM(backbone, pruner)
    whole = backbone.embed(backbone.example_inputs(SIZES), model.vision_layers)
    second = longer(whole, 5, seed=0)
    turns = [until(whole, whole.mask.shape[1] - 2), whole, second, longer(second, 3, seed=1)]
    turns.append(longer(longer(whole, 4, seed=2), 9, seed=3))  # another text than that of the turn before
    memory = TrunkMemory.of(backbone, model.pruner)
    if memory is None:
        assert family == "gemma3"
        return
    lengths = []
    for turn in turns:
        memory.meet(turn)
        lengths.append(memory.length)
        assert_same(prefill(backbone, model.pruner, turn, memory), prefill(backbone, model.pruner, turn, None))
        assert memory.nbytes >= turn.embeds.nbytes
    width = whole.mask.shape[1]
    assert lengths == [0, width - 2, width, width + 5, width]


@torch.no_grad()
def test_other_images_are_not_mistaken_for_the_same() -> None:
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    model = gl.PrunedVLM(backbone)
    first = backbone.embed(backbone.example_inputs(SIZES), ())
    other = replace(first, embeds=first.embeds.clone())
    place = int(first.visual[0].nonzero()[3])
    other.embeds[0, place] += 1e-3
    memory = TrunkMemory.of(backbone, model.pruner)
    assert memory is not None
    for turn in (first, other):
        memory.meet(turn)
        assert_same(prefill(backbone, None, turn, memory), prefill(backbone, None, turn, None))
    assert memory.length == place
