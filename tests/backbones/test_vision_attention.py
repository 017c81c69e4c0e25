"""Attention and keys of vision towers, read without a map, against maps of all pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones import vision_attention
from glimpse_lightning.backbones.vision_attention import attention_of, class_row, received
from glimpse_lightning.core.visual_tokens import VisionAttention, VisionKeys
from glimpse_lightning.engine import taps
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.testing import SIZES

CLASS_TOKEN = {"llava", "llava_next", "internvl"}
QWEN = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
TAPS = (
    VisionAttention(-1),
    VisionAttention(0),
    VisionAttention(-1, queries="class"),
    VisionAttention(1, "joint", "class"),
    VisionKeys(1),
    VisionKeys(1, "joint"),
    1,
)


def random_qk(length: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, 3, length, 8, generator=generator), torch.randn(batch, 3, length, 8, generator=generator)


@pytest.mark.parametrize("kind", ["none", "bool", "float", "rows"])
def test_rows_and_sums_against_the_map(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = random_qk(11)
    real = torch.ones(2, 11, dtype=torch.bool)
    if kind != "none":
        real[1, 7:] = False
    logits = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~real[:, None, None], -torch.inf)
    weights = logits.softmax(-1).mean(1)
    mask: Any = {
        "none": None,
        "bool": real[:, None, None].expand(-1, 1, 11, -1),
        "float": torch.where(real, 0.0, torch.finfo(torch.float32).min)[:, None, None],
        "rows": real.long(),
    }[kind]
    torch.testing.assert_close(class_row(query, key, 0.3, mask), weights[:, 0])
    expected = (weights * real[..., None]).sum(1)
    for limit in (2**24, 1, 200):
        monkeypatch.setattr(vision_attention, "LOGITS", limit)
        torch.testing.assert_close(received(query, key, 0.3, mask), expected)
    assert received(query, key, 0.3, mask).sum() == pytest.approx(real.sum().item())


def maps(backbone: Any, layer: int, inputs: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """(weights of all heads, keys) of each attention call of a block, under eager attention."""
    calls: list[tuple[Tensor, Tensor]] = []

    def see(query: Tensor, key: Tensor, mask: Any, options: Any) -> None:
        logits = query @ key.transpose(-1, -2) * options["scaling"]
        if mask is not None:
            logits = logits + torch.where(mask, 0.0, -1e9) if mask.dtype == torch.bool else logits + mask
        calls.append((logits.softmax(-1), key))

    with taps.observe(attention_of(backbone.vision_blocks[layer]), see):
        backbone.embed(inputs)
    return calls


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tower(family: str, attention: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family](attention))
    inputs = backbone.example_inputs(SIZES)
    prompt = backbone.embed(inputs, TAPS)
    count, none = int(prompt.visual.sum()), backbone.example_inputs([[]])
    for tap in TAPS:
        assert prompt.vision[tap].shape == (count, backbone.embed(none, TAPS).vision[tap].shape[1])
    weight, row = prompt.vision[VisionAttention(-1)], prompt.vision[VisionAttention(-1, queries="class")]
    assert weight.shape == row.shape == (count, 1)
    assert weight.dtype == row.dtype == torch.float32
    assert (weight > 0).all() and (row > 0).all()
    assert not torch.equal(weight, prompt.vision[VisionAttention(0)])
    assert (family in CLASS_TOKEN) == backbone.has_class_token  # type: ignore[attr-defined]
    assert (family in CLASS_TOKEN) == (not torch.equal(weight, row))
    calls = maps(backbone, -1, inputs)
    if family in CLASS_TOKEN:
        assert all(bool((w.mean(1)[:, 0].sum(-1) - 1).abs().max() < 1e-5) for w, _ in calls)
        assert row.max() < 1
    elif family in QWEN:  # all patches are there, four to a token: the mean over tokens is that over patches
        torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
    if family == "llava":
        torch.testing.assert_close(row[:, 0], calls[0][0].mean(1)[:, 0, 1:].flatten())
        torch.testing.assert_close(weight[:, 0], calls[0][0].mean(1).sum(1)[:, 1:].flatten())  # of class and patches
        keys = maps(backbone, 1, inputs)[0][1][:, :, 1:]
        torch.testing.assert_close(prompt.vision[VisionKeys(1)], keys.mean(1).flatten(0, 1))
        torch.testing.assert_close(prompt.vision[VisionKeys(1, "joint")], keys.transpose(1, 2).flatten(2).flatten(0, 1))
    if family == "qwen2_vl":
        flat = torch.cat([w.mean(1).sum(1)[0] for w, _ in calls])
        torch.testing.assert_close(weight[:, 0], flat.view(-1, 4).mean(1))


@pytest.mark.parametrize("layer", [0, 1])
def test_qwen2_5_windows_come_back_in_raster_order(layer: int) -> None:
    """One image in one window, whole: windowed and full attention then agree with the plain map over raster order."""
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    wide, tap = backbone.example_inputs([[(3, 5)]]), VisionAttention(layer)
    weight = backbone.embed(wide, (tap,)).vision[tap][:, 0]
    calls = maps(backbone, layer, wide)
    assert (len(calls) > 1) == (layer == 0)  # windows of 2 x 2 tokens against the whole image
    per_unit = torch.cat([w.mean(1).sum(1)[0] for w, _ in calls]).view(-1, 4).mean(1)
    assert not torch.allclose(weight, per_unit)
    index = backbone.embed(wide, (layer,)).vision[layer]
    order: list[Tensor] = []
    hook = backbone.vision_blocks[layer].register_forward_hook(lambda *a: order.append(a[2]))  # type: ignore[attr-defined]
    backbone.embed(wide)
    hook.remove()
    window_order = order[0].view(-1, 4, order[0].shape[-1]).mean(1)
    place = torch.cdist(index, window_order).argmin(1)
    torch.testing.assert_close(weight, per_unit[place])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
def test_independent_of_batch_mates(family: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family]())
    together = backbone.embed(backbone.example_inputs(SIZES), TAPS)
    sample = together.visual.nonzero()[:, 0]
    for index, sizes in enumerate(SIZES):
        if not sizes:
            continue
        alone = backbone.embed(backbone.example_inputs([sizes], first_sample=index), TAPS)
        for tap in TAPS:
            torch.testing.assert_close(together.vision[tap][sample == index], alone.vision[tap], atol=1e-5, rtol=1e-4)


def test_nothing_is_left_behind_and_nothing_is_computed_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = gl.wrap_backbone(FAMILIES["llava"]("eager"))
    vision = backbone.model.config.vision_config
    inputs = backbone.example_inputs(SIZES)
    backbone.embed(inputs, TAPS)
    assert vision._attn_implementation == "eager"
    assert not taps._observers.of
    monkeypatch.setattr(vision_attention, "_weights", None)
    backbone.embed(inputs, (1,))


@pytest.mark.parametrize("changed", [{"heads": "each"}, {"queries": "cls"}])
def test_unknown_kinds_of_attention(changed: dict[str, Any]) -> None:
    with pytest.raises(GlimpseError, match=repr(*changed.values())):
        VisionAttention(-1, **changed)
    with pytest.raises(GlimpseError, match="'side'"):
        VisionKeys(-1, "side")  # type: ignore[arg-type]


def test_unknown_layers() -> None:
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    with pytest.raises(GlimpseError, match="between -3 and 2"):
        backbone.embed(backbone.example_inputs(SIZES), (VisionAttention(-4),))
