"""LoRA: adapters that change nothing at first, what is written, and the merged model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones import Backbone
from glimpse_lightning.backbones.lora import (
    LoRA,
    add_lora,
    load_lora,
    lora_modules,
    merge_lora,
    save_lora,
    without_lora,
)
from glimpse_lightning.cli import main
from glimpse_lightning.runtime.errors import GlimpseError

IDS = torch.arange(3, 12)[None]


@torch.no_grad()
def logits(backbone: Backbone) -> Tensor:
    return backbone.model(input_ids=IDS).logits


def adapted(**options: object) -> Backbone:
    """glimpse-tiny with adapters that do something."""
    torch.manual_seed(0)
    backbone = gl.load_backbone("glimpse-tiny")
    add_lora(backbone, LoRA(r=4, alpha=8, **options))  # type: ignore[arg-type]
    for module in lora_modules(backbone):
        torch.nn.init.normal_(module.lora_B["default"].weight, std=0.1)
    return backbone


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return logits(gl.load_backbone("glimpse-tiny"))


def test_adapters_change_nothing_at_first_and_can_be_left_out(plain: Tensor) -> None:
    pytest.importorskip("peft")
    fresh = gl.load_backbone("glimpse-tiny")
    add_lora(fresh, LoRA(r=2))
    assert torch.equal(logits(fresh), plain)
    backbone = adapted()
    assert len(lora_modules(backbone)) == 7 * 8  # q, k, v, o, gate, up, down of each layer; no vision tower, no head
    assert (logits(backbone) - plain).abs().max() > 0.1
    with without_lora(backbone):
        assert torch.equal(logits(backbone), plain)
    assert (logits(backbone) - plain).abs().max() > 0.1
    assert len(lora_modules(adapted(targets=["q_proj", "v_proj"]))) == 2 * 8
    with pytest.raises(GlimpseError, match=r"`targets` to be out of down_proj, .*but got \['w1'\]"):
        adapted(targets=["w1"])


def test_saved_adapters_load_and_merge_into_a_plain_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: Tensor
) -> None:
    pytest.importorskip("peft")
    backbone = adapted()
    expected = logits(backbone)
    save_lora(backbone, tmp_path / "adapter")
    again = gl.load_backbone("glimpse-tiny")
    load_lora(again, tmp_path / "adapter")
    assert torch.equal(logits(again), expected)
    merge_lora(again)
    assert not lora_modules(again)
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)

    merged = tmp_path / "merged"
    assert (
        main(["export", "--merge-lora", str(tmp_path / "adapter"), "--output", str(merged), "--dtype", "float32"]) == 0
    )
    loaded = gl.load_backbone(str(merged))
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
    sample = gl.GlyphVQA("val", 1, image_size=224)[0]
    assert torch.equal(loaded.collate([sample]).inputs["input_ids"], again.collate([sample]).inputs["input_ids"])
    assert main(["export", "--merge-lora", str(tmp_path / "adapter"), "--output", str(merged)]) == 1
    assert "new or empty folder" in capsys.readouterr().err
    assert main(["export", "--merge-lora", str(tmp_path), "--output", str(tmp_path / "x")]) == 1
    assert "Expected" in capsys.readouterr().err


def test_without_peft_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(GlimpseError, match=r"glimpse-lightning\[lora\]"):
        add_lora(gl.load_backbone("glimpse-tiny"), LoRA())
