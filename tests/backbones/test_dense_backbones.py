"""The embedded glimpse-dense folder is a plain Hugging Face Qwen2.5-VL folder, small, frozen, and reads dense pages."""

from __future__ import annotations

import hashlib

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

import glimpse_lightning as gl
from glimpse_lightning.backbones.embedded import DENSE, folder_of
from glimpse_lightning.data.evidence import evidence_mask

FOLDER = folder_of(DENSE)
FROZEN = "7d443d333cd78b936ee8a3f424f87ffc7c540887e1de2f5ca0229e4a1eb27b7c"
"""SHA-256 of the weights under which the tables of ``benchmarks/dense`` were made."""


@pytest.fixture(scope="module")
def backbone() -> gl.Backbone:
    return gl.load_backbone(DENSE)


def test_it_is_small_and_its_weights_are_those_of_the_tables(backbone: gl.Backbone) -> None:
    assert type(backbone.model) is Qwen2_5_VLForConditionalGeneration
    assert len(backbone.layers) == 8
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12e6
    assert hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest() == FROZEN


@torch.no_grad()
def test_hugging_face_generates_right_answers(backbone: gl.Backbone) -> None:
    """With its own ``generate``, three questions of each family."""
    pages = gl.DenseGlyphVQA("val", size=24)
    samples = [pages[index] for index in range(24)]
    batch = backbone.collate(samples)
    types = (batch.inputs["input_ids"] == backbone.model.config.image_token_id).int()
    tokens = backbone.model.generate(**batch.inputs, mm_token_type_ids=types, max_new_tokens=64, do_sample=False)
    answers = backbone.processor.batch_decode(tokens[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [answer.strip() == sample.answers[0] for answer, sample in zip(answers, samples, strict=True)]
    assert sum(right) >= 20  # catches a broken model; how good it is stands in benchmarks/dense


@torch.no_grad()
def test_words_do_not_look_as_they_are_said(backbone: gl.Backbone) -> None:
    """The cosine of question and visual tokens ranks the evidence hardly better than chance."""
    pages = gl.DenseGlyphVQA("val", size=24)
    batch = backbone.collate([pages[index] for index in range(24)])
    chances: list[float] = []

    class Probe(gl.scorers.QuestionRelevance):
        def forward(self, tokens: gl.VisualTokens) -> torch.Tensor:
            scores, shown = super().forward(tokens), evidence_mask(tokens, tokens.boxes)
            for sample in range(tokens.num_samples):
                here = tokens.sample == sample
                mine, others = scores[here & shown], scores[here & ~shown]
                chances.append(float((mine[:, None] > others[None]).float().mean()))
            return scores

    stage = gl.PruneStage(-1, Probe(negate=False), gl.policies.KeepRatio(1.0))
    gl.PrunedVLM(backbone, gl.Pruner([stage])).prefill(**batch.inputs, boxes=batch.boxes)
    assert 0.3 < sum(chances) / len(chances) < 0.7
