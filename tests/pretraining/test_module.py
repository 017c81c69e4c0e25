"""A pretraining of a few steps: its lessons, its export, and its resumption."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from typing_extensions import override

import glimpse_lightning as gl
from glimpse_lightning.data.glyph_vqa.words import IMAGE_PAD, build_tokenizer
from glimpse_lightning.pretraining.architectures import Llava, architecture_of
from glimpse_lightning.pretraining.curriculum import PretrainData, Stage
from glimpse_lightning.pretraining.dense_pages import DensePages
from glimpse_lightning.pretraining.losses import visual_features
from glimpse_lightning.pretraining.module import PretrainModule
from glimpse_lightning.pretraining.packing import IDS, pack

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
    saved = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer(folder, callbacks=[saved]).fit(trained, datamodule=data())
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


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of LLaVA-1.5's architecture whose patches have the size of a tile."""
    folder, tokenizer = tmp_path_factory.mktemp("llava"), build_tokenizer()
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
                              image_size=224, patch_size=28)  # fmt: skip
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=192, intermediate_size=64, num_hidden_layers=2,
                       num_attention_heads=3, pad_token_id=0, bos_token_id=None, eos_token_id=2)  # fmt: skip
    LlavaConfig(text_config=text, vision_config=vision, image_token_index=IDS[IMAGE_PAD]).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    LlavaProcessor(
        images, tokenizer, patch_size=28, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token=IMAGE_PAD, chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@torch.no_grad()
def test_a_llava_learns_what_it_will_see(llava: Path, tmp_path: Path) -> None:
    """Its lessons are the pages, positions and prompts that the exported model gets through its own processor."""
    trained = PretrainModule(str(llava), pages=DensePages(), apart=True, export=str(tmp_path / "model"))
    with torch.enable_grad():
        trainer(tmp_path, enable_checkpointing=False).fit(trained, datamodule=data())
    backbone = gl.load_backbone(str(tmp_path / "model"), dtype="float32")
    sample = gl.DenseGlyphVQA("test", 1, 224)[0]
    batch = backbone.collate([sample])
    image = Llava().pixels([np.asarray(sample.images[0])])["pixel_values"]
    torch.testing.assert_close(batch.inputs["pixel_values"], image)
    packed = pack(DensePages(), Random(4), 1, 1, 224, architecture=Llava())
    packed.pixels = {"pixel_values": image}
    start = 2 + 64 + 1
    asked = batch.inputs["input_ids"][0, start:].tolist()
    packed.input_ids = torch.cat([packed.input_ids[:, :start], torch.tensor([asked])], dim=1)
    assert packed.input_ids.equal(batch.inputs["input_ids"])
    model, places = backbone.model, packed.input_ids == IDS[IMAGE_PAD]
    embeds = model.get_input_embeddings()(packed.input_ids)
    embeds = embeds.masked_scatter(places[:, :, None], visual_features(model, packed))
    last = min(len(asked), packed.position_ids.shape[1] - start)
    seen = model.model.language_model(
        inputs_embeds=embeds[:, : start + last], position_ids=packed.position_ids[:, : start + last], use_cache=False
    )
    alone = model(input_ids=packed.input_ids[:, : start + last], pixel_values=image)
    torch.testing.assert_close(model.lm_head(seen.last_hidden_state), alone.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_stopped_pretraining_goes_on_with_the_next_batch(
    whole: tuple[Path, PretrainModule], tmp_path: Path, stop: int
) -> None:
    folder, trained = whole
    again = module(tmp_path, seed=9)  # whose words would look otherwise
    rest = trainer(tmp_path, enable_checkpointing=False)
    rest.fit(again, datamodule=data(), ckpt_path=folder / f"step={stop}.ckpt")
    assert rest.global_step == 6
    assert torch.equal(again.looks, trained.looks)
    for name, value in trained.average.items():
        torch.testing.assert_close(again.average[name], value, atol=1e-6, rtol=1e-5)


def test_a_stage_may_end_before_its_plan_does() -> None:
    whole, first = (Stage("a", "ideal", steps, suffix=(0.0, 1.0), warmup=1, planned=4) for steps in (4, 2))
    rates = [whole.settings(step)["lr"] for step in range(4)]
    assert rates == sorted(rates, reverse=True) and rates[:2] == [first.settings(step)["lr"] for step in range(2)]
    assert rates[0] == whole.lr and rates[2] == pytest.approx((whole.lr + whole.final_lr) / 2)


def lessons(*goals: float, **families: float) -> PretrainData:
    small: dict[str, Any] = {"kind": "ideal", "images": 1, "questions": 3, "image_size": 224, "families": {"tile": 1}}
    stages = [Stage(f"to {goal}", steps=3, until={"tile": goal}, **small) for goal in goals]
    return PretrainData([*stages, Stage("last", steps=2, **small)], DensePages(), val_batches=1)


def stages_of(folder: Path) -> list[str]:
    return [json.loads(line)["stage"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_stage_ends_when_it_has_reached_its_goals(tmp_path: Path) -> None:
    trained = module(tmp_path)
    saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    with pytest.warns(UserWarning, match=r"'to 1.0' ends short of its goals \(tile 0% of 100%\)"):
        trainer(tmp_path, callbacks=[saved]).fit(trained, datamodule=lessons(0.0, 1.0))
    expected = ["to 0.0", "to 1.0", "to 1.0", "to 1.0", "last", "last"]
    assert stages_of(tmp_path) == expected and trained.ended == {0: 1}
    for stop in (1, 2, 5):
        (folder := tmp_path / str(stop)).mkdir()
        rest = trainer(folder, enable_checkpointing=False)
        again = module(folder)
        rest.fit(again, datamodule=lessons(0.0, 1.0), ckpt_path=tmp_path / f"step={stop}.ckpt")
        assert stages_of(folder) == expected[stop:]
        for name, value in trained.average.items():
            torch.testing.assert_close(again.average[name], value, atol=1e-6, rtol=1e-5)


def test_batches_of_a_stage_may_differ_in_size() -> None:
    stage = Stage("a", "ideal", 9, images=1, questions=1, image_size=[224, 252], families={"tile": 1})
    sides = {len(stage.batch(DensePages(), Random(step), step, Llava()).visual_words[0]) for step in range(9)}
    assert sides == {64, 81}


def test_the_last_stage_may_reach_its_goals(tmp_path: Path) -> None:
    trained = module(tmp_path, export=str(tmp_path / "model"))
    last = lessons(0.0)
    last.stages = last.stages[:1]
    trainer(tmp_path, enable_checkpointing=False).fit(trained, datamodule=last)
    assert stages_of(tmp_path)[0] == "to 0.0" and trained.global_step == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_model_is_exported_at_the_end_alone(tmp_path: Path) -> None:
    """So that nobody takes half-trained weights for the trained ones."""

    seen: list[bool] = []

    class Watch(Callback):
        @override
        def on_validation_end(self, *_: Any) -> None:
            seen.append((tmp_path / "model").exists())

    short = data()
    short.stages = short.stages[1:2]
    watched = trainer(tmp_path, enable_checkpointing=False, val_check_interval=1, callbacks=[Watch()])
    watched.fit(module(tmp_path, export=str(tmp_path / "model")), datamodule=short)
    assert seen == [False, False]
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_goals_count_the_stage_alone(tmp_path: Path) -> None:
    """A line of the log that begins in one stage and ends in another one counts the latter."""
    trained = module(tmp_path)
    trained.log_every = 3
    data = lessons(0.0)
    data.stages[0].steps, data.stages[0].families = 2, {"list": 1}
    data.stages[0].until = None
    trainer(tmp_path, enable_checkpointing=False).fit(trained, datamodule=data)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert line["stage"] == "last" and "list" not in line


def test_an_architecture_that_cannot_be_pretrained_is_named() -> None:
    with pytest.raises(gl.GlimpseError, match=r"qwen2_5_vl or llava.*'qwen3_vl'"):
        architecture_of("qwen3_vl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "oracle"}, "one of vision"),
        ({"image_size": 230}, "multiple of 28"),
        ({"image_size": [224, 230]}, "multiple of 28"),
        ({"families": {"tile": 1}, "until": {"tile": 0.9, "list": 0.9}}, "until 'list' is learned"),
    ],
)
def test_mistakes_in_a_stage_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(gl.GlimpseError, match=message):
        Stage(**{"name": "a", "kind": "ideal", "steps": 1, **options})
