"""The embedded glimpse-tiny folder is a plain Hugging Face Qwen2.5-VL folder, small, and can read GlyphVQA."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import glimpse_lightning
from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.glyph_vqa.draw import draw
from glimpse_lightning.data.glyph_vqa.layout import FAMILIES, ask, make_layout
from glimpse_lightning.data.glyph_vqa.words import build_tokenizer, vocabulary
from glimpse_lightning.pretraining.architectures import patches
from glimpse_lightning.pretraining.glyph_pages import GlyphPages
from glimpse_lightning.pretraining.losses import visual_features
from glimpse_lightning.pretraining.packing import pack

FOLDER = Path(glimpse_lightning.__file__).parent / "backbones" / "glimpse_tiny"


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


def test_architecture_and_size(model):
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    text, vision = model.config.text_config, model.config.vision_config
    assert text.num_hidden_layers >= 8
    assert 0 < len(vision.fullatt_block_indexes) < vision.depth
    assert (vision.patch_size, vision.spatial_merge_size) == (14, 2)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12e6


def test_tokenizer_files_are_those_of_the_code(tokenizer):
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab() and len(vocabulary()) == len(tokenizer)
    assert tokenizer.chat_template == built.chat_template
    assert tokenizer.padding_side == "left"


def test_one_token_a_word_in_questions_and_answers(tokenizer):
    rng = Random(0)
    for family in FAMILIES:
        question = ask(make_layout(rng, 224, 224), family, rng)
        for text in (question.text, question.answer):
            assert tokenizer.tokenize(text) == text.split()
            assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_any_ascii_text_has_tokens(tokenizer):
    text = "".join(chr(code) for code in range(33, 127))
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_chat_template(tokenizer):
    content = [{"type": "image"}, {"type": "text", "text": "what is in the star"}]
    turns = [{"role": "user", "content": content}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|><|vision_start|><|image_pad|><|vision_end|>what is in the star<|assistant|>"
    turns.append({"role": "assistant", "content": "red K"})
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole == prompt + "red K<|im_end|>"


@pytest.mark.parametrize("size", [224, 448])
def test_image_processor_does_not_resize_and_packing_draws_the_same_patches(size):
    rng = Random(1)
    image = draw(make_layout(rng, size, size), rng)
    batch = Qwen2VLImageProcessorPil.from_pretrained(FOLDER)(images=image, return_tensors="pt")
    assert batch.image_grid_thw.tolist() == [[1, size // 14, size // 14]]
    torch.testing.assert_close(batch.pixel_values, torch.from_numpy(patches(np.asarray(image))))


@torch.no_grad()
def test_packed_sequence_equals_separate_ones(model):
    batch = pack(GlyphPages(), Random(2), images=1, questions=3, image_size=224, suffix=0.5)
    prefix = 2 + 64 + 1
    features = visual_features(model, batch)
    embeds = model.get_input_embeddings()(batch.input_ids)
    places = batch.input_ids == model.config.image_token_id
    embeds = embeds.masked_scatter(places[:, :, None], features)
    packed = model.model.language_model(
        inputs_embeds=embeds, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
    )
    packed_logits = model.lm_head(packed.last_hidden_state)[0]
    starts = (batch.position_ids[0, 0] == 3 + 8).nonzero().flatten().tolist()
    starts = [start for start in starts if start >= prefix]
    assert len(starts) == 3
    for start, end in zip(starts, [*starts[1:], batch.input_ids.shape[1]], strict=True):
        ids = torch.cat([batch.input_ids[:, :prefix], batch.input_ids[:, start:end]], dim=1)
        alone = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **batch.pixels,
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
        )
        torch.testing.assert_close(packed_logits[start:end], alone.logits[0, prefix:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_answers_with_stock_generate(model, tokenizer):
    dataset, processor = GlyphVQA("val", size=35), Qwen2VLImageProcessorPil.from_pretrained(FOLDER)
    samples = [dataset[i] for i in range(35)]
    images = processor(images=[sample.images[0] for sample in samples], return_tensors="pt")
    prompts = []
    for sample in samples:
        content = [{"type": "image"}, {"type": "text", "text": sample.question}]
        turn = [{"role": "user", "content": content}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        prompts.append(prompt.replace("<|image_pad|>", "<|image_pad|>" * 256))
    text = tokenizer(prompts, padding=True, return_tensors="pt")
    types = (text.input_ids == model.config.image_token_id).int()
    out = model.generate(**text, **images, mm_token_type_ids=types, max_new_tokens=8, do_sample=False)
    answers = tokenizer.batch_decode(out[:, text.input_ids.shape[1] :], skip_special_tokens=True)
    right = sum(answer in sample.answers for answer, sample in zip(answers, samples, strict=True))
    assert right >= 21  # catches a broken model; how good it is stands in benchmarks/glimpse_tiny_pretraining.md
