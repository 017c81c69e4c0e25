"""A pretraining of a few steps: its lessons, its export, and its resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import glimpse_lightning as gl
from glimpse_lightning.pretraining.curriculum import PretrainData, Stage
from glimpse_lightning.pretraining.dense_pages import DensePages
from glimpse_lightning.pretraining.module import PretrainModule

ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1] * 32}
TEXT = {"num_attention_heads": 3, "num_key_value_heads": 3, "rope_parameters": ROPE}


def data() -> PretrainData:
    small: dict[str, Any] = {"images": 1, "questions": 3, "image_size": 224}
    stages = [
        Stage("see", "vision", 2, **small),
        Stage("think", "ideal", 2, **small, suffix=(0.0, 1.0), hide=0.5),
        Stage("answer", "joint", 1, **small, see=False),
        Stage("polish", "joint", 1, **small, vision_weight=0.1),
    ]
    return PretrainData(stages, DensePages(), val_batches=1)


def module(folder: Path, **options: Any) -> PretrainModule:
    log = str(folder / "log.jsonl")
    return PretrainModule(text=TEXT, pages=DensePages(), apart=True, log_file=log, log_every=1, **options)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, num_sanity_val_steps=0, **quiet, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PretrainModule]:
    folder = tmp_path_factory.mktemp("whole")
    trained = module(folder, export=str(folder / "model"))
    trainer(folder, enable_checkpointing=False).fit(trained, datamodule=data())
    return folder, trained


def test_lessons_come_in_order_and_each_trains_its_part(whole: tuple[Path, PretrainModule]) -> None:
    folder, trained = whole
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["see", "see", "think", "think", "answer", "polish", "validation"]
    assert ["tokens_right" in line for line in lines] == [True, True, False, False, False, True, False]
    assert all(line["answer_loss"] > 0 for line in lines[2:])
    fresh = module(folder).model.state_dict()
    moved = {name.split(".")[1] for name, value in trained.model.state_dict().items() if not value.equal(fresh[name])}
    assert moved == {"visual", "language_model", "weight"}  # the last is the head


def test_the_export_loads_like_any_backbone(whole: tuple[Path, PretrainModule]) -> None:
    folder, trained = whole
    backbone = gl.load_backbone(str(folder / "model"), dtype="float32")
    assert backbone.model.config.text_config.num_attention_heads == 3
    batch = backbone.collate([gl.DenseGlyphVQA("test", 1, 224)[0]])
    assert torch.isfinite(gl.PrunedVLM(backbone).prefill(**batch.inputs).logits).all()
    name = "model.language_model.layers.0.self_attn.k_proj.weight"
    torch.testing.assert_close(backbone.model.state_dict()[name], trained.average[name].bfloat16().float())


def test_a_stopped_pretraining_goes_on_with_the_next_batch(whole: tuple[Path, PretrainModule], tmp_path: Path) -> None:
    half = trainer(tmp_path, max_steps=3)
    half.fit(module(tmp_path), datamodule=data())
    half.save_checkpoint(tmp_path / "half.ckpt")
    again = module(tmp_path, seed=9)  # whose words would look otherwise
    trainer(tmp_path, enable_checkpointing=False).fit(again, datamodule=data(), ckpt_path=tmp_path / "half.ckpt")
    _, trained = whole
    assert torch.equal(again.looks, trained.looks)
    for name, value in trained.average.items():
        torch.testing.assert_close(again.average[name], value, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("options", "message"), [({"kind": "oracle"}, "one of vision"), ({"image_size": 230}, "multiple of 28")]
)
def test_mistakes_in_a_stage_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(gl.GlimpseError, match=message):
        Stage(**{"name": "a", "kind": "ideal", "steps": 1, **options})
