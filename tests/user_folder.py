"""A folder as a user of the documentation has it: data, models and a Hub cache, all of them tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from hub_cache import store
from hub_layouts import write_copy
from PIL import Image
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
)

from glimpse_lightning.backbones.embedded import source_of
from glimpse_lightning.cli.packaged_recipes import recipes
from glimpse_lightning.cli.recipe_files import read_yaml
from glimpse_lightning.data.tables.benchmarks import BENCHMARKS
from glimpse_lightning.metrics.judge_score import VISUAL_COT_SETS

ROOT = Path(__file__).parents[1]
QWEN, LLAVA = "Qwen/Qwen2.5-VL-7B-Instruct", "llava-hf/llava-1.5-7b-hf"
COPIES = "copies"
"""Folder of the benchmarks' repositories."""
WEIGHTS = ("*.safetensors", "config.json", "generation_config.json")
NARROW = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
TEMPLATE = (
    "{% for message in messages %}{{ message.role.upper() }}: {% for part in message.content %}"
    "{{ '<|image_pad|>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


def write_hub(folder: Path) -> Path:
    """A Hub cache in ``folder`` with a stand-in of both published models; returns the cache.

    Each has its model's number of layers and of vision blocks, so that recipes fit as they are, and narrow layers.
    """
    cache = store(folder / "cache", QWEN, {"main": _qwen(folder / "qwen")})
    return store(cache, LLAVA, {"main": _llava(folder / "llava")})


def _qwen(folder: Path) -> Path:
    shutil.copytree(source_of("glimpse-tiny"), folder, ignore=shutil.ignore_patterns(*WEIGHTS))
    config = AutoConfig.from_pretrained(source_of("glimpse-tiny"))
    layers = {"num_hidden_layers": 28, "num_key_value_heads": 1, "layer_types": ["full_attention"] * 28}
    config.text_config.update(NARROW | layers)
    config.vision_config.update(
        {"depth": 32, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).bfloat16().save_pretrained(folder)
    return folder


def _llava(folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(source_of("glimpse-tiny"))
    side = {"height": 16, "width": 16}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side), tokenizer=tokenizer,
        patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    text = LlamaConfig(
        **NARROW, num_hidden_layers=32, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=24, num_attention_heads=2, image_size=16, patch_size=4
    )
    image = tokenizer.convert_tokens_to_ids(tokenizer.image_token)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=image))
    model.bfloat16().save_pretrained(folder)
    return folder


def write_inputs(folder: Path, hub: Path) -> None:
    """What the commands of the pages read, in ``folder``: the checkout's pictures and recipes, a model, and data."""
    for name in ("docs", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "models").mkdir()
    (folder / "models" / QWEN.split("/")[1]).symlink_to(hub.parent / "qwen")
    for name in ("mine", "data"):
        for split in ("train", "val", "test"):
            _jsonl(folder / name / f"{split}.jsonl")
    (folder / "mine" / "photos").mkdir()
    for name in ("one.jpg", "two.png"):
        Image.new("RGB", (84, 56), "green").save(folder / "mine" / "photos" / name)
    for task in filter(BENCHMARKS.__contains__, _tasks()):
        write_copy(task, folder / COPIES / BENCHMARKS[task].hub_id.split("/")[1])
    (folder / "data" / "DocVQA").symlink_to(folder / COPIES / "DocVQA")  # the one that docs/evaluation.md downloads
    for name in VISUAL_COT_SETS:
        _visual_cot(folder, name)


def _tasks() -> list[str]:
    """Tasks of the packaged suites."""
    return [
        task
        for name, path in recipes().items()
        if name.startswith("eval/")
        for task in read_yaml(path)["data"]["init_args"]["tasks"]
    ]


def _jsonl(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (84, 56), "white").save(path.parent / "image.png")
    row = {"answer": "red", "image": "image.png", "boxes": [[0, 0, 0.5, 1]]}
    _write_lines(path, [row | {"question": f"what is in {letter}"} for letter in "ABCD"])


def _visual_cot(folder: Path, name: str) -> None:
    image = folder / "datas" / "cot" / name / "1.jpg"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (84, 56), "white").save(image)
    turns = [{"value": text} for text in ("<image>\nwhat is red", "[0, 0, 1, 1]", "<image>", "star")]
    path = f"cot/{name}/1.jpg"
    row = {"question_id": 1, "image": [path, f"{path}###[0, 0, 28, 28]"], "conversations": turns}
    file = folder / "viscot_benchmark" / "benchmark" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([row]))


def write_replies(predictions: Path, path: Path) -> None:
    """A judge's reply to each of the answers in ``predictions``."""
    lines = [json.loads(line) for file in predictions.glob("*.jsonl") for line in file.read_text().splitlines()]
    _write_lines(path, [{"task": line["task"], "id": line["id"], "reply": "score: 0.5"} for line in lines])


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
