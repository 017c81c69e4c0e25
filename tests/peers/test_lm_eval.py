"""lm-eval's log-likelihoods on a pruned model, with the real package (`nox -s peers`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import glimpse_lightning as gl

huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="needs lm-eval: nox -s peers")
vlms = pytest.importorskip("lm_eval.models.hf_vlms")
pytestmark = pytest.mark.slow

PAIRS = [("which letter is", " left of A"), ("what is", " the number"), ("what is", " the colour of B")]


def evaluated(model: Any, tokenizer: Any) -> Any:
    return huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, backend="causal")


@pytest.fixture(scope="module")
def model() -> gl.PrunedVLM:
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.2))
    return gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))


def test_texts_score_as_under_the_hugging_face_model(model: gl.PrunedVLM) -> None:
    requests = [SimpleNamespace(args=pair) for pair in PAIRS]
    tokenizer = model.backbone.tokenizer
    ours = evaluated(model, tokenizer).loglikelihood(requests, disable_tqdm=True)
    theirs = evaluated(model.backbone.model, tokenizer).loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in theirs], rel=1e-4)


def test_a_call_with_an_image_is_a_pruned_prefill(model: gl.PrunedVLM) -> None:
    """As lm-eval's multimodal model makes it: one row of ids, and what else the processor gave."""
    batch = model.backbone.collate([gl.GlyphVQA("test", 1, image_size=224)[0]])
    inputs = dict(batch.inputs)
    lm = SimpleNamespace(model=model)
    logits = vlms.HFMultimodalLM._model_multimodal_call(lm, inputs.pop("input_ids"), inputs)
    torch.testing.assert_close(logits[:, -1], model.prefill(**batch.inputs).logits)
