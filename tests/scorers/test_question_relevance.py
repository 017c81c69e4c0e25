"""QuestionRelevance and VisionRank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from factories import FACTS, visual_tokens
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

import glimpse_lightning as gl
from glimpse_lightning.core.visual_tokens import VisionAttention
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import QuestionRelevance, Requires, VisionRank

BATCH = [[(1, 3, 4)], [], [(1, 2, 2), (1, 2, 3)]]


def test_fallback_is_the_negated_mean_cosine_with_text() -> None:
    scorer = QuestionRelevance()
    tokens = visual_tokens(BATCH, scorer.requires)
    assert tokens.text is not None and tokens.text_sample is not None
    scores = scorer(tokens)
    for i in range(len(tokens)):
        text = tokens.text[tokens.text_sample == tokens.sample[i]]
        cosines = [F.cosine_similarity(tokens.hidden[i], t, dim=0).item() for t in text]
        assert scores[i].item() == pytest.approx(-sum(cosines) / len(cosines), abs=1e-5)


def test_trap_relevance_is_negated() -> None:
    """CDPruner uses the negated similarity: what is unlike the question is relevant."""
    tokens = visual_tokens([[(1, 1, 2)]], Requires(text=True))
    assert tokens.text is not None
    like = replace(tokens, hidden=torch.stack([tokens.text.mean(0), -tokens.text.mean(0)]))
    assert QuestionRelevance()(like).argmax() == 1
    assert QuestionRelevance(negate=False)(like).argmax() == 0


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {word: i for i, word in enumerate(["<pad>", "<end>", "question", "?", *map(str, range(100, 104))])}
    backend = Tokenizer(WordLevel(words, unk_token="<end>"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", model_max_length=8
    ).save_pretrained(folder)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    save_tokenizer(tmp_path)
    shape = {"hidden_size": 48, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    text = shape | {"hidden_size": 32, "vocab_size": 8, "max_position_embeddings": 8, "eos_token_id": 1}
    vision = shape | {"image_size": 8, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_clip(clip: str) -> None:
    scorer = QuestionRelevance(clip)
    scorer.build(FACTS, -1)
    assert scorer.requires == Requires(vision_layers=(FACTS.vision_layers - 2,))
    assert not list(scorer.parameters())
    assert not scorer.state_dict()
    tokens = visual_tokens(BATCH, scorer.requires)
    scores = scorer(tokens)
    model = CLIPModel.from_pretrained(clip)
    ids = {100: [2, 4, 3], 102: [2, 6, 3]}
    for i in range(len(tokens)):
        key = int(tokens.key[tokens.sample[i]])
        text: Any = model.get_text_features(input_ids=torch.tensor([ids[key]]))
        text = getattr(text, "pooler_output", text)
        state = tokens.vision[FACTS.vision_layers - 2][i]
        image = model.visual_projection(model.vision_model.post_layernorm(state))
        assert scores[i].item() == pytest.approx(-F.cosine_similarity(image, text[0], dim=0).item(), abs=1e-4)


def test_long_questions_are_read_in_parts(clip: str) -> None:
    scorer = QuestionRelevance(clip)
    scorer.build(FACTS, -1)
    tokens = visual_tokens([[(1, 2, 2)], [(1, 2, 3)]], scorer.requires)
    long = replace(tokens, questions=("question " * 8 + "101 ?", "question 102"))  # 8 tokens fit
    model = CLIPModel.from_pretrained(clip)

    def text(ids: list[int]) -> Tensor:
        found: Any = model.get_text_features(input_ids=torch.tensor([ids]))
        return getattr(found, "pooler_output", found)[0]

    image = model.visual_projection(model.vision_model.post_layernorm(tokens.vision[FACTS.vision_layers - 2]))
    parts = [text([2] * 8), text([5, 3])]
    expected = -torch.stack([F.cosine_similarity(image[:4], part, dim=-1) for part in parts]).mean(0)
    scores = scorer(long)
    torch.testing.assert_close(scores[:4], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[4:], -F.cosine_similarity(image[4:], text([2, 6]), dim=-1), atol=1e-4, rtol=1e-4)


def test_on_a_backbone_with_that_clip(tmp_path: Path) -> None:
    """LLaVA's vision tower, and CLIP's text tower from a folder: relevance is what CLIP itself says of its patches."""
    llava = tiny_models.llava()
    text = {k: tiny_models.CLIP[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    text |= {"num_attention_heads": 2, "vocab_size": 8, "max_position_embeddings": 8, "eos_token_id": 1}
    torch.manual_seed(1)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=dict(tiny_models.CLIP), projection_dim=16)).eval()
    model.vision_model.load_state_dict(
        getattr(llava.model.vision_tower, "vision_model", llava.model.vision_tower).state_dict()
    )
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    backbone = gl.wrap_backbone(llava)
    inputs = backbone.example_inputs([[(4, 4)], [(4, 4)]])
    stage = gl.PruneStage(-1, QuestionRelevance(str(tmp_path)), gl.policies.DPP(ratio=0.25))
    out = gl.PrunedVLM(backbone, gl.Pruner([stage])).prefill(**inputs, questions=["question 101", "103 ?"])
    with torch.no_grad():
        image = model.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
        image = F.normalize(model.visual_projection(model.vision_model.post_layernorm(image)), dim=-1)
        pooled = [model.text_model(input_ids=torch.tensor([ids])).pooler_output for ids in ([2, 5], [7, 3])]
        words = F.normalize(model.text_projection(torch.cat(pooled)), dim=-1)
    expected = -(image * words[:, None]).sum(-1)
    torch.testing.assert_close(out.scores[0], expected.flatten(), atol=1e-4, rtol=1e-4)
    assert out.keep[0].view(2, 16).sum(1).tolist() == [4, 4]


def test_clip_messages(clip: str, tmp_path: Path) -> None:
    with pytest.raises(GlimpseError, match="Could not load CLIP"):
        QuestionRelevance(str(tmp_path / "nothing")).build(FACTS, -1)
    with pytest.raises(GlimpseError, match="width 40"):
        QuestionRelevance(clip).build(replace(FACTS, vision_hidden_size=40), -1)


def test_vision_rank_is_the_log_of_the_attention() -> None:
    scorer = VisionRank(-3, "joint")
    (tap,) = scorer.requires.vision_layers
    assert tap == VisionAttention(-3, "joint", "class")
    tokens = visual_tokens(BATCH, scorer.requires)
    torch.testing.assert_close(scorer(tokens).exp(), tokens.vision[tap][:, 0])
    assert not scorer(replace(tokens, vision={tap: torch.zeros(len(tokens), 1)})).isinf().any()
