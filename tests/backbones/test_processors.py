"""From samples with pictures to answers, with Hugging Face's own processors around a made-up tokenizer."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import glimpse_lightning as gl

SQUARE = {"height": 16, "width": 16}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }} {% endfor %}{% endfor %}"
)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<sep>", "<image>"]  # the tiny models' image token is 5
IDEFICS = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>"]
MARKERS = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]


def tokenizer() -> PreTrainedTokenizerFast:
    tokens = [*SPECIAL, *IDEFICS, *MARKERS, "what", "is", "this", "cat", "dog"]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"additional_special_tokens": [*SPECIAL[4:], *IDEFICS, *MARKERS]}
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        chat_template=TEMPLATE, **special,
    )  # fmt: skip


def processor(family: str):
    stock = {"tokenizer": tokenizer(), "chat_template": TEMPLATE}
    if family == "idefics3":
        size = {"longest_edge": 32}
        images = Idefics3ImageProcessorPil(size=size, max_image_size={"longest_edge": 16})
        return Idefics3Processor(image_processor=images, image_seq_len=4, **stock)
    tiles = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "llava":
        return LlavaProcessor(image_processor=CLIPImageProcessorPil(size=SQUARE, crop_size=SQUARE), **tiles, **stock)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=SQUARE, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]]
    )
    return LlavaNextProcessor(image_processor=images, **tiles, **stock)


def samples() -> list[gl.Sample]:
    kinds = (((40, 20), "red"), ((16, 30), "blue"), ((9, 9), "teal"))
    pictures = [Image.new("RGB", size, color) for size, color in kinds]
    return [
        gl.Sample("a", 0, "what is this", ["cat"], images=pictures[:1]),
        gl.Sample("b", 1, "this is what", ["dog"], images=pictures[1:]),
        gl.Sample("c", 2, "what", ["cat dog"]),
    ]


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_collated_batch_equals_single_samples(family):
    backbone = gl.wrap_backbone(FAMILIES[family](), processor(family))
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.5))
    model = gl.PrunedVLM(backbone, gl.Pruner([stage]))
    batch = backbone.collate(samples())
    out = model.prefill(**batch.inputs, keys=batch.key)
    assert 0 < out.keep[0].sum() < len(out.keep[0])
    for row, sample in enumerate(samples()):
        alone = backbone.collate([sample])
        single = model.prefill(**alone.inputs, keys=alone.key)
        torch.testing.assert_close(out.logits[row], single.logits[0], atol=1e-4, rtol=1e-4)
    answers = backbone.decode(model.generate(**batch.inputs, max_new_tokens=3))
    assert len(answers) == 3


@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_unpruned_equals_hugging_face(family):
    backbone = gl.wrap_backbone(FAMILIES[family](), processor(family))
    inputs = backbone.collate(samples()).inputs
    with torch.no_grad():
        expected = backbone.model(**inputs).logits[:, -1]
    torch.testing.assert_close(gl.PrunedVLM(backbone).prefill(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
