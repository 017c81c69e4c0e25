"""A saved pruner knows the backbone it was trained on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.backbones.fingerprint import fingerprint, same_weights
from glimpse_lightning.backbones.lora import LoRA
from glimpse_lightning.objectives import GRPO


def vip() -> gl.Pruner:
    scorer = gl.scorers.VIP(vision_layers=[1], attention_dim=16, condition_dim=16, heads=2)
    return gl.Pruner([gl.PruneStage(1, scorer, gl.policies.KeepRatio(0.4))])


def changed(model: Any, share: float = 1e-2) -> Any:
    """The model after a training that moved each weight a little."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += share * weight.abs().mean() * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_same_in_every_precision_and_other_for_other_weights(family: str) -> None:
    exact = fingerprint(gl.wrap_backbone(FAMILIES[family]()))
    parts = {" ".join(name.split()[:-1]) for name in exact}
    assert {"embeddings", "head", "decoder 0", "decoder 3", "vision 0"} <= parts
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        again = gl.wrap_backbone(FAMILIES[family]().to(dtype))
        assert same_weights(exact, fingerprint(again), dtype)
    other = fingerprint(gl.wrap_backbone(changed(FAMILIES[family]())))
    assert not same_weights(exact, other, torch.float32)
    assert not same_weights(exact, other, torch.float16)


def test_another_backbone_is_refused_by_name_unless_asked_for(tmp_path: Path) -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    model = gl.PrunedVLM(backbone, vip())
    gl.save_pruner(model.pruner, tmp_path / "p", backbone)
    gl.PrunedVLM(gl.load_backbone("glimpse-tiny", dtype="bfloat16"), gl.load_pruner(tmp_path / "p"))
    refined = gl.wrap_backbone(changed(gl.load_backbone("glimpse-tiny").model))
    refined.name = "refined"
    with pytest.raises(gl.GlimpseError, match="was trained on glimpse-tiny, but this backbone, refined, has the same"):
        gl.PrunedVLM(refined, gl.load_pruner(tmp_path / "p"))
    gl.PrunedVLM(refined, gl.load_pruner(tmp_path / "p", any_backbone=True))
    gl.save_pruner(gl.load_pruner(tmp_path / "p"), tmp_path / "copy")  # which carries it on
    with pytest.raises(gl.GlimpseError, match="trained on glimpse-tiny"):
        gl.PrunedVLM(refined, gl.load_pruner(tmp_path / "copy"))


def test_adapters_count_once_they_are_merged() -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    plain = fingerprint(backbone)
    GRPO(rewards={"exact_match": 1.0}, lora=LoRA(r=4)).prepare(gl.PrunedVLM(backbone, vip()))
    assert same_weights(plain, fingerprint(backbone), torch.float32)


@pytest.mark.parametrize("target", ["q_proj", "v_proj", "down_proj"])
def test_one_kind_of_layer_that_was_trained_is_enough(target: str) -> None:
    """As merged adapters leave it."""
    backbone = gl.load_backbone("glimpse-tiny")
    plain = fingerprint(backbone)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in backbone.decoder.named_parameters():
            if name.endswith(f"{target}.weight"):
                low = torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1])
                weight += 1e-2 * weight.abs().mean() * low
    assert not same_weights(plain, fingerprint(backbone), torch.float32)


def test_random_weights_have_none(tmp_path: Path) -> None:
    backbone = gl.load_backbone("random:mid-smolvlm")
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, gl.scorers.Random(), gl.policies.KeepRatio(0.4))]))
    gl.save_pruner(model.pruner, tmp_path / "p", backbone)
    assert gl.load_pruner(tmp_path / "p").trained_on is None


def test_other_settings_of_the_image_processor_are_said(tmp_path: Path) -> None:
    backbone = gl.load_backbone("glimpse-tiny", max_pixels=100 * 28 * 28)
    gl.save_pruner(gl.PrunedVLM(backbone, vip()).pruner, tmp_path / "p", backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gl.PrunedVLM(gl.load_backbone("glimpse-tiny", max_pixels=100 * 28 * 28), gl.load_pruner(tmp_path / "p"))
    with pytest.warns(UserWarning, match=r"trained with other settings .*: size .*78400.*, now "):
        gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.load_pruner(tmp_path / "p"))
