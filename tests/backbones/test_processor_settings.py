"""Settings of the image processor: applied in one place, to stock and image-only processors, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import run, write_recipe
from tiny_models import FAMILIES
from transformers import CLIPImageProcessorPil, GenerationConfig, SiglipImageProcessorPil

import glimpse_lightning as gl
from glimpse_lightning.ablation.runs import process_key, questions_key
from glimpse_lightning.backbones.processor_settings import described, known_settings, with_settings
from glimpse_lightning.cli.identity import differences
from glimpse_lightning.training.module import PruningModule


def tokens(backbone: Any, width: int, height: int) -> int:
    sample = gl.Sample("a", 0, "what?", ["x"], images=[Image.new("RGB", (width, height))])
    return int((backbone.collate([sample]).inputs["input_ids"] == backbone.model.config.image_token_id).sum())


@pytest.mark.parametrize(
    "options",
    [
        {"max_pixels": 50176},
        {"processor": {"max_pixels": 50176}},
        {"processor": {"size": {"longest_edge": 50176}}},
        {"processor": {"size": {"longest_edge": 50176, "shortest_edge": 3136}}, "max_pixels": 50176},
        {"max_pixels": 50176, "min_pixels": None, "processor": {"do_resize": None}},
    ],
)
@pytest.mark.parametrize("device", [None, "meta"])
def test_a_bound_in_every_spelling(options: dict[str, Any], device: str | None) -> None:
    backbone = gl.load_backbone("glimpse-tiny", device_map=device, **options)
    assert backbone.max_pixels == 50176
    assert tokens(backbone, 1000, 1000) == 64
    assert tokens(backbone, 56, 56) == 4
    assert "50176" in backbone.asked()


def test_bounds_from_both_sides() -> None:
    backbone = gl.load_backbone("glimpse-tiny", min_pixels=100 * 784, max_pixels=400 * 784)
    assert tokens(backbone, 28, 28) == 100
    assert tokens(backbone, 5000, 5000) == 400
    assert backbone.asked() == "Backbone with max_pixels 313600, min_pixels 78400."
    plain = gl.load_backbone("glimpse-tiny")
    assert (plain.asked(), plain.max_pixels) == ("", 448 * 448)
    assert described(backbone.processor)["size"] == {"longest_edge": 313600, "shortest_edge": 78400}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processor": {"max_pixel": 5}}, "has no setting 'max_pixel'. Did you mean max_pixels"),
        ({"processor": {"do_pad": True}}, "has no setting 'do_pad'"),
        ({"processor": {"crop_size": 5}}, "has no setting 'crop_size'.*Its settings are do_convert_rgb"),
        ({"processor": {"patch_size": 16}}, "has no setting 'patch_size'"),
        ({"max_pixels": 3000}, "`min_pixels` above 0 and at most `max_pixels`, but got 3136 and 3000.*give both"),
        ({"min_pixels": 0}, "got 0 and 200704"),
        ({"max_pixels": "50176"}, "refuses .*expected int, got str"),
        ({"processor": {"do_resize": "no"}}, "refuses .*expected bool"),
        ({"processor": {"size": {"height": 5}}}, "`size` with shortest_edge and longest_edge only, but got height"),
        ({"processor": {"size": 448}}, "refuses"),
        ({"processor": {"size": {"longest_edge": 5000}}, "max_pixels": 6000}, "the same bound, but got 6000 and 5000"),
        ({"processor": {"max_pixels": 5000}, "max_pixels": 6000}, "Expected `max_pixels` once, but got 6000 and.*5000"),
        ({"processor": object()}, "an instance of object. A processor of your own goes to `gl.wrap_backbone"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(gl.GlimpseError, match=message):
        gl.load_backbone("glimpse-tiny", device_map="meta", **options)


def test_models_without_a_processor(tmp_path: Path) -> None:
    with pytest.raises(gl.GlimpseError, match="Expected no max_pixels with the random weights"):
        gl.load_backbone("random:smolvlm-256m", device_map="meta", max_pixels=5)
    FAMILIES["llava"]().save_pretrained(tmp_path)
    with pytest.raises(gl.GlimpseError, match=r"Expected no do_pad for .*: the model has no processor"):
        gl.load_backbone(str(tmp_path), processor={"do_pad": True})
    assert gl.load_backbone(str(tmp_path), processor={}).processor is None


class LlavaProcessor(SimpleNamespace):
    """As far as settings go."""


SIDES = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}


def llava(**settings: Any) -> Any:
    return with_settings(LlavaProcessor(image_processor=CLIPImageProcessorPil(**SIDES)), settings, "llava")


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def expand2square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """As LLaVA's own code pads."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("size", [(40, 20), (17, 50), (24, 24), (33, 32)])
def test_llava_pads_as_the_original_does(size: tuple[int, int]) -> None:
    clip, image = CLIPImageProcessorPil(**SIDES), picture(*size)
    padded = expand2square(image, tuple(int(value * 255) for value in clip.image_mean))
    expected = clip(images=[padded], return_tensors="pt")["pixel_values"]
    got = llava(do_pad=True).image_processor(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_llava_crops_as_before_where_only_other_settings_are_made() -> None:
    image = picture(40, 20)
    expected, got = (
        each(images=[image], return_tensors="pt")["pixel_values"]
        for each in (CLIPImageProcessorPil(**SIDES, do_normalize=False), llava(do_normalize=False).image_processor)
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_llava_has_no_bounds_on_pixels() -> None:
    with pytest.raises(gl.GlimpseError, match=r"LlavaImageProcessor.* has no setting 'max_pixels'.*do_pad"):
        llava(max_pixels=5)
    assert "do_pad" not in known_settings(SiglipImageProcessorPil)  # it would do nothing before a fixed size


def test_evidence_lies_in_the_padded_square() -> None:
    backbone = gl.wrap_backbone(FAMILIES["llava"](), llava(do_pad=True))
    views = backbone.views({"image_sizes": torch.tensor([[20, 40]])}, torch.tensor([[1, 4, 4]]))  # type: ignore[attr-defined]
    assert views is not None
    assert views.region.tolist() == [[0.0, -0.5, 1.0, 1.5]]


def test_settings_beat_defaults_of_the_processor_itself() -> None:
    image = CLIPImageProcessorPil(**SIDES)
    stock = SimpleNamespace(image_processor=image, images_kwargs={"do_normalize": True, "do_rescale": True})
    with_settings(stock, {"do_normalize": False}, "x")
    assert stock.images_kwargs == {"do_normalize": False, "do_rescale": True}
    fixed = SimpleNamespace(_defaults={"images_kwargs": {"do_normalize": True}})
    old = SimpleNamespace(image_processor=image, valid_processor_kwargs=fixed)
    with_settings(old, {"do_normalize": True}, "x")
    with pytest.raises(gl.GlimpseError, match="always sets `do_normalize` to True; update transformers"):
        with_settings(old, {"do_normalize": False}, "x")


def test_results_say_what_a_checkpoint_asks_of_greedy_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such fields stay in force, as in lmms-eval; those of sampling do not, nor do lengths."""
    backbone = gl.load_backbone("glimpse-tiny")
    asked = {"repetition_penalty": 1.05, "no_repeat_ngram_size": 3, "suppress_tokens": [7], "bad_words_ids": [[5, 6]]}
    sampling = {"do_sample": True, "temperature": 1e-6, "top_k": 1, "top_p": 0.8, "max_new_tokens": 99}
    config = GenerationConfig(eos_token_id=2, sequence_bias={(8, 9): -1.5}, **asked, **sampling)
    monkeypatch.setattr(backbone.model, "generation_config", config)
    found = json.loads(json.dumps(backbone.described()["generation_config"]))
    assert found.pop("sequence_bias")
    assert found == {"eos_token_id": 2, **asked}


TEST = """
model: {backbone: glimpse-tiny, max_new_tokens: 2, processor: {max_pixels: 50176, min_pixels: 784}}
data:
  test: {class_path: GlyphVQA, init_args: {split: test, size: 2, image_size: 448}}
  num_workers: 0
trainer: {accelerator: cpu, enable_progress_bar: false, callbacks: []}
"""


def test_a_recipe_says_it_and_a_flag_changes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, TEST)
    assert run("test", recipe, tmp_path, "--model.processor.max_pixels", "25088") == 0
    assert "Backbone with max_pixels 25088, min_pixels 784." in capsys.readouterr().out
    folder = tmp_path / "small/test_0"
    results = json.loads((folder / "results.json").read_text())
    assert results["image_processor"]["size"] == {"longest_edge": 25088, "shortest_edge": 784}
    assert results["generation_config"] == {"eos_token_id": 2}
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {line["total"] for line in lines} == {25}
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["processor"] == {"max_pixels": 25088, "min_pixels": 784}
    assert run("test", recipe, tmp_path, "--model.processor", "{max_pixels: 100352}") == 0
    assert json.loads((tmp_path / "small/test_1/results.json").read_text())["image_processor"]["size"] == {
        "longest_edge": 100352, "shortest_edge": 3136
    }  # fmt: skip


def test_a_recipe_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, TEST.replace("max_pixels", "most_pixels"))
    assert run("test", recipe, tmp_path) == 1
    assert "has no setting 'most_pixels'. Did you mean" in capsys.readouterr().err


def test_a_loaded_backbone_brings_its_own() -> None:
    backbone: Any = gl.load_backbone("glimpse-tiny", max_pixels=50176)
    with pytest.raises(gl.GlimpseError, match="`processor` and `source` with the name of a backbone"):
        PruningModule(backbone, processor={"max_pixels": 784})


def test_it_is_part_of_what_a_run_is() -> None:
    """Weights, the shared backbone of an ablation and its remembered full answers are those of one setting."""
    config: dict[str, Any] = {"model": {"backbone": "glimpse-tiny"}, "data": {}, "trainer": {}}
    small = {**config, "model": {**config["model"], "processor": {"max_pixels": 50176}}}
    assert differences(config, small) == ["model.processor: None != {'max_pixels': 50176}"]
    assert differences(small, config) == ["model.processor: {'max_pixels': 50176} != None"]
    cell: Any = SimpleNamespace(mode="test")
    assert process_key(cell, config) != process_key(cell, small)
    assert questions_key(config) != questions_key(small)


def test_a_filter_goes_by_its_name():
    image = Image.effect_noise((120, 90), 60).convert("RGB")

    def pixels(resample):
        backbone = gl.load_backbone("glimpse-tiny", processor={"resample": resample})
        return backbone.collate([gl.Sample("a", 0, "What?", ["x"], [image])]).inputs["pixel_values"]

    assert torch.equal(pixels("nearest"), pixels(0))
    assert torch.equal(pixels("bicubic"), pixels(3))
    assert not torch.equal(pixels(0), pixels(3))


@pytest.mark.parametrize(
    ("settings", "said"), [({"resample": "banana"}, "bicubic"), ({"image_mean": [0.5]}, "refuses")]
)
def test_what_cannot_work_is_refused_before_it_has_to(settings, said):
    with pytest.raises(gl.GlimpseError, match=said):
        gl.load_backbone("glimpse-tiny", processor=settings)
