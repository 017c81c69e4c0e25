"""Embedded backbones for dense pages are plain Hugging Face folders, small, frozen, and read dense pages."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from statistics import mean

import pytest
import torch
from transformers import LlavaForConditionalGeneration, Qwen2_5_VLForConditionalGeneration

import glimpse_lightning as gl
from glimpse_lightning.backbones.embedded import DENSE, LLAVA, folder_of

ROOT = Path(__file__).parents[2]
FROZEN = {
    DENSE: (Qwen2_5_VLForConditionalGeneration, "8903afb06d27f8698b68bbfb836c5fb22c6b84ca9f56b51ef8c514311ba3f597"),
    LLAVA: (LlavaForConditionalGeneration, "0512da881a1e44d88f86b7f4bc185d7112325e65d4418d408f65e3846dcd3c26"),
}
"""Class, and SHA-256 of the weights under which the tables of ``benchmarks/dense`` were made."""


@pytest.fixture(scope="module", params=FROZEN)
def backbone(request: pytest.FixtureRequest) -> gl.Backbone:
    return gl.load_backbone(request.param)


def test_it_is_small_and_its_weights_are_those_of_the_tables(backbone: gl.Backbone) -> None:
    kind, digest = FROZEN[backbone.name]
    folder = folder_of(backbone.name)
    assert type(backbone.model) is kind
    assert len(backbone.layers) == 8
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12e6
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == digest


@torch.no_grad()
def test_hugging_face_generates_right_answers(backbone: gl.Backbone) -> None:
    """With its own ``generate``, three questions of each family."""
    pages = gl.DenseGlyphVQA("val", size=24)
    samples = [pages[index] for index in range(24)]
    batch = backbone.collate(samples)
    tokens = backbone.model.generate(**backbone.hf_inputs(batch.inputs), max_new_tokens=64, do_sample=False)
    answers = backbone.processor.batch_decode(tokens[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [answer.strip() == sample.answers[0] for answer, sample in zip(answers, samples, strict=True)]
    assert sum(right) >= 20  # catches a broken model; how good it is stands in benchmarks/dense


def test_words_do_not_look_as_they_are_said(backbone: gl.Backbone) -> None:
    """The cosine of question and visual tokens ranks the evidence hardly better than chance."""
    spec = importlib.util.spec_from_file_location("relevance", ROOT / "benchmarks" / "relevance.py")
    assert spec is not None and spec.loader is not None
    relevance = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(relevance)
    found = relevance.correlations(backbone.name, gl.DenseGlyphVQA("val", size=20), 20)
    assert len(found["all"]) == 20
    assert abs(mean(found["all"])) < 0.4  # glimpse-tiny's: 0.60
