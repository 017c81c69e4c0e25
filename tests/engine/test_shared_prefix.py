"""Samples that begin alike run their common prefix once, and come out as if each ran for itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.core.visual_tokens import Views
from glimpse_lightning.engine.prompt import Prompt, TokenLayout
from glimpse_lightning.engine.shared_prefix import SharedPrefix
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk import Trunk

SIZES = [[(3, 4)], [(4, 4), (4, 2)]]
ROWS = [0, 1, 0, 1, 1]


def alike(backbone: Backbone) -> Prompt:
    """Five prompts over two prefixes; their last two columns differ, and one of them is a column shorter."""
    prompt = backbone.embed(backbone.example_inputs(SIZES), (0,))
    sample = prompt.visual.nonzero()[:, 0]
    of_sample = [(sample == row).nonzero()[:, 0] for row in range(len(SIZES))]
    items = torch.repeat_interleave(prompt.grid.prod(-1)).unique_consecutive()
    item_sample = torch.tensor([int(sample[prompt.grid.prod(-1)[:item].sum()]) for item in items.tolist()])
    tokens = torch.cat([of_sample[row] for row in ROWS])
    grid = torch.cat([prompt.grid[item_sample == row] for row in ROWS])
    embeds, mask, visual = prompt.embeds[ROWS].clone(), prompt.mask[ROWS].clone(), prompt.visual[ROWS].clone()
    positions = prompt.position_ids[..., ROWS, :].clone()
    generator = torch.Generator().manual_seed(0)
    embeds[2:, -2:] += torch.randn(3, 2, embeds.shape[-1], generator=generator) * embeds.std()
    for values in (embeds[3:4], mask[3:4], visual[3:4], positions[..., 3:4, :].movedim(-1, 1)):
        values.copy_(values.roll(1, 1))  # what was the last column is now padding
    mask[3, 0] = visual[3, 0] = False
    assert not visual[:, -3:].any()
    return Prompt(
        embeds, mask, positions, visual, grid, {0: prompt.vision[0][tokens]},
        layer_features={layer: features[tokens] for layer, features in prompt.layer_features.items()},
    )  # fmt: skip


def states(backbone: Backbone, prompt: Prompt, shared: SharedPrefix | None) -> list[Tensor]:
    trunk = Trunk.start(backbone, prompt, shared)
    real = prompt.mask
    out = []
    for layer in range(len(backbone.layers)):
        tap = AttentionTap(span=slice(real.shape[1] - 1, real.shape[1]))
        trunk.run_layer(layer, tap)
        assert tap.logits is not None
        cached = trunk.cache.layers[layer]
        out += [trunk.hidden[real], tap.logits[:, :, 0].transpose(1, 2)[real]]
        out += [cached.keys.transpose(1, 2)[real], cached.values.transpose(1, 2)[real]]
    return out


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gemma3"}))
def test_sharing_changes_nothing(family: str, attention: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family](attention))
    with torch.no_grad():
        prompt = alike(backbone)
        shared = SharedPrefix.of(backbone, prompt)
        assert shared is not None
        assert shared.group.tolist() == [0, 1, 0, 1, 1]
        assert len(shared.rows) == 2
        for apart, together in zip(states(backbone, prompt, None), states(backbone, prompt, shared), strict=True):
            torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gemma3"}))
def test_copies_of_a_prompt_share_it(family: str) -> None:
    """Those of several images and of prompts that begin alike, too; ``repeated`` itself is checked by what it gives."""
    backbone = gl.wrap_backbone(FAMILIES[family]())
    with torch.no_grad():
        prompt = alike(backbone)
        repeated = prompt.repeated(3)
        shared = SharedPrefix.of(backbone, prompt, copies=3)
        assert shared is not None
        assert len(shared.rows) == 2
        for each, together in zip(states(backbone, repeated, None), states(backbone, repeated, shared), strict=True):
            torch.testing.assert_close(together, each, rtol=1e-4, atol=1e-4)
        once, three = states(backbone, prompt, None)[-4], states(backbone, repeated, None)[-4]
        lengths = prompt.mask.sum(1).tolist()
        expected = [own for own in once.split(lengths) for _ in range(3)]
        torch.testing.assert_close(three, torch.cat(expected), rtol=1e-4, atol=1e-4)
        for row, (grid, features) in enumerate(visuals(repeated)):
            assert torch.equal(grid, visuals(prompt)[row // 3][0])
            assert torch.equal(features, visuals(prompt)[row // 3][1])


def visuals(prompt: Prompt) -> list[tuple[Tensor, Tensor]]:
    """Grids and features of each sample."""
    layout = TokenLayout.of(prompt.visual, prompt.grid)
    rows = range(len(prompt.mask))
    return [(prompt.grid[layout.item_sample == row], prompt.vision[0][layout.sample == row]) for row in rows]


def test_copies_show_images_of_their_own() -> None:
    """Two tiles of an image, another image, and a second sample's."""
    region = torch.arange(16.0, dtype=torch.float64).view(4, 4)
    views = Views(torch.tensor([0, 0, 1, 2]), region).repeated(torch.tensor([3, 1]), 2)
    assert views.image.tolist() == [0, 0, 1, 2, 2, 3, 4, 5]
    assert torch.equal(views.region, region[[0, 1, 2, 0, 1, 2, 3, 3]])


def test_windows_of_attention_reach_back_into_the_prefix() -> None:
    model = FAMILIES["llava_next"]()
    model.config.text_config.sliding_window = 6
    backbone = gl.wrap_backbone(model)
    with torch.no_grad():
        prompt = alike(backbone)
        shared = SharedPrefix.of(backbone, prompt)
        wide = states(gl.wrap_backbone(FAMILIES["llava_next"]()), prompt, None)[-1]
        for apart, together in zip(states(backbone, prompt, None), states(backbone, prompt, shared), strict=True):
            torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
        assert (apart - wide).abs().max() > 1e-3


def test_where_nothing_is_alike_nothing_is_shared() -> None:
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    with torch.no_grad():
        assert SharedPrefix.of(backbone, backbone.embed(backbone.example_inputs(SIZES))) is None
        one = backbone.embed(backbone.example_inputs(SIZES[:1]))
        assert SharedPrefix.of(backbone, one) is None
        moved = alike(backbone)
        steps = torch.arange(len(ROWS))[:, None].expand_as(moved.mask)
        assert SharedPrefix.of(backbone, replace(moved, position_ids=moved.position_ids + steps)) is None


def test_images_whose_tokens_see_ahead_are_not_shared() -> None:
    backbone = gl.wrap_backbone(FAMILIES["gemma3"]())
    with torch.no_grad():
        assert SharedPrefix.of(backbone, alike(backbone)) is None


def test_the_same_prompt_twice_keeps_its_last_column() -> None:
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    with torch.no_grad():
        prompt = alike(backbone)
        twice = replace(prompt, embeds=prompt.embeds[[0, 0]], mask=prompt.mask[[0, 0]],
                        position_ids=prompt.position_ids[..., [0, 0], :], visual=prompt.visual[[0, 0]],
                        grid=prompt.grid[[0, 0]])  # fmt: skip
        shared = SharedPrefix.of(backbone, twice)
        assert shared is not None
        assert shared.length == prompt.mask.shape[1] - 1
        for apart, together in zip(states(backbone, twice, None), states(backbone, twice, shared), strict=True):
            torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
