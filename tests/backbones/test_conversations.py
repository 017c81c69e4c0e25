"""Conversations of several turns, and batches merged out of prompts that were made one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES
from tiny_processors import processor

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.chat import conversation_inputs

NAMES = ("glimpse-tiny", "glimpse-dense", "llava", "llava_next", "idefics3")


def backbone_of(name: str) -> Backbone:
    return gl.wrap_backbone(FAMILIES[name](), processor(name)) if name in FAMILIES else gl.load_backbone(name)


def conversations() -> list[list[dict[str, Any]]]:
    """A question about a wide image, one in two turns about two images, and one without any."""
    wide, high, small = (
        {"type": "image", "image": Image.linear_gradient("L").resize(size).convert("RGB")}
        for size in ((90, 40), (32, 60), (30, 30))
    )
    what, this = {"type": "text", "text": "what is this"}, {"type": "text", "text": "this is"}
    two = [
        {"role": "user", "content": [high, what]},
        {"role": "assistant", "content": [this]},
        {"role": "user", "content": [this, small, this]},
    ]
    return [[{"role": "user", "content": [wide, what]}], two, [{"role": "user", "content": [what]}]]


@pytest.mark.parametrize("name", NAMES)
def test_merged_prompts_are_what_the_processor_makes_of_all(name: str) -> None:
    backbone = backbone_of(name)
    asked = conversations()[:2]
    merged = backbone.merge([backbone.converse(messages) for messages in asked])
    whole = conversation_inputs(asked, backbone.processor)
    assert set(merged) >= set(whole) - {"num_crops"}
    for key, value in whole.items():
        assert torch.equal(merged[key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_answers_in_a_merged_batch_are_those_alone(name: str) -> None:
    backbone = backbone_of(name)
    pruner = gl.Pruner([gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.5))])
    model = gl.PrunedVLM(backbone, pruner)
    prompts = [backbone.converse(messages) for messages in conversations()]
    out = model.prefill(**backbone.merge(prompts))
    for row, prompt in enumerate(prompts):
        alone = model.prefill(**prompt)
        torch.testing.assert_close(out.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)


def test_a_placeholder_in_a_text_is_refused() -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is <|image_pad|>"}]}]
    with pytest.raises(gl.GlimpseError, match="stands in the text of a message"):
        backbone.converse(messages)


def test_a_template_that_refuses_is_an_error_with_its_reason() -> None:
    backbone = backbone_of("llava")
    backbone.processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(gl.GlimpseError, match=r"refuses this conversation \(.*roles must alternate"):
        backbone.converse(conversations()[0])
