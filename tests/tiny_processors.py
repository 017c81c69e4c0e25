"""Hugging Face's own processors around a made-up tokenizer, for the tiny models."""

from __future__ import annotations

import pytest
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
        try:
            images = Idefics3ImageProcessorPil(size=size, max_image_size={"longest_edge": 16})
        except ImportError as error:  # older transformers want torchvision
            pytest.skip(str(error).strip().splitlines()[0])
        return Idefics3Processor(image_processor=images, image_seq_len=4, **stock)
    tiles = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    if family == "llava":
        return LlavaProcessor(
            image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE), **tiles, **stock
        )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=SQUARE, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]]
    )
    return LlavaNextProcessor(image_processor=images, **tiles, **stock)
