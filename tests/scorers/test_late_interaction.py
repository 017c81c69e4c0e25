"""LateInteraction against its formula, and the text states that the engine hands it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from factories import FACTS, visual_tokens
from tiny_models import FAMILIES, qwen2_5_vl
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers import LateInteraction, Random, Requires, Scorer
from glimpse_lightning.testing import SIZES

BATCH = [[(1, 5, 6)], [], [(1, 2, 2), (2, 4, 3)], [(1, 1, 1)]]
AFTER = 3


def built(after_layer: int = AFTER, **kwargs: Any) -> LateInteraction:
    torch.manual_seed(0)
    scorer = LateInteraction(**{"dim": 6, "heads": 3} | kwargs)
    scorer.build(FACTS, after_layer)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return scorer.eval()


def by_hand(scorer: LateInteraction, tokens: VisualTokens) -> list[float]:
    """The docstring's formula, number by number, with states that are not standardised."""
    assert tokens.text_sample is not None
    logits = []
    for i in range(len(tokens)):
        state = torch.cat([tokens.embeds[i], tokens.hidden[i]])
        total = 0.0
        for t in (tokens.text_sample == tokens.sample[i]).nonzero()[:, 0].tolist():
            text = torch.cat([tokens.text_states[layer][t] for layer in (0, AFTER)])
            for head in range(3):
                rows = slice(6 * head, 6 * head + 6)
                query = scorer.query.weight[rows] @ text + scorer.query.bias[rows]
                key = scorer.key.weight[rows] @ state + scorer.key.bias[rows]
                match = math.exp(float(scorer.gain[head])) * float(query @ key) / math.sqrt(6)
                total += math.exp(match + float(scorer.offset[head]))
        attention = float(scorer.attention(torch.cat([tokens.probes["last"][i], tokens.probes["text"][i]])))
        logits.append(math.log(total) + attention)
    return logits


def test_logits_are_those_of_the_formula() -> None:
    scorer = built(attention_layers="all")
    tokens = visual_tokens(BATCH, scorer.requires)
    with torch.no_grad():
        torch.testing.assert_close(scorer(tokens), torch.tensor(by_hand(scorer, tokens)), atol=1e-4, rtol=1e-4)


def test_long_texts_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = built()
    tokens = visual_tokens(BATCH, scorer.requires)
    with torch.no_grad():
        whole = scorer(tokens)
        monkeypatch.setattr("glimpse_lightning.scorers.late_interaction.ROWS", 2)
        torch.testing.assert_close(scorer(tokens), whole)


def test_before_the_decoder_words_are_compared() -> None:
    scorer = built(after_layer=-1)
    assert scorer.requires == Requires(text_layers=(-1,))
    assert scorer(visual_tokens(BATCH, scorer.requires)).isfinite().all()
    assert scorer.key.in_features == FACTS.hidden_size


def test_a_sample_without_text_matches_nothing() -> None:
    scorer = built()
    tokens = visual_tokens(BATCH, scorer.requires)
    object.__setattr__(tokens, "text_sample", torch.ones_like(tokens.text_sample))  # all text is another sample's
    assert (scorer(tokens) < -1e3).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"text_layers": [0, 4]}, "`text_layers` to lie between -1 and the stage's `after_layer` = 3"),
        ({"attention_layers": [-1]}, "`attention_layers` to lie between 0"),
        ({"text_layers": []}, "at least one layer"),
    ],
)
def test_layers_that_have_not_run(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(GlimpseError, match=message):
        built(**kwargs)


@pytest.mark.parametrize("name", ["dim", "heads"])
def test_bad_sizes(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` to be at least 1"):
        LateInteraction(**{name: 0})


class Reader(Scorer):
    """A scorer that remembers what it was handed."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = layers

    @property
    def requires(self) -> Requires:
        return Requires(text_layers=self.layers)

    def forward(self, tokens: VisualTokens) -> Tensor:
        self.tokens = tokens
        return tokens.hidden.new_zeros(len(tokens))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "llava"])
def test_text_states_are_hugging_faces(family: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family]())
    inputs, reader = backbone.example_inputs(SIZES), Reader((-1, 0, 2))
    keep_all = gl.policies.KeepRatio(1.0)
    gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(2, reader, keep_all)])).prefill(**inputs)
    text = ~backbone.embed(inputs).visual & inputs["attention_mask"].bool()
    with torch.no_grad():
        states = backbone.model(**backbone.hf_inputs(inputs), output_hidden_states=True).hidden_states
    for layer in reader.layers:
        torch.testing.assert_close(reader.tokens.text_states[layer], states[layer + 1][text], atol=1e-4, rtol=1e-4)


def test_text_states_after_an_earlier_stage_are_those_of_what_it_kept() -> None:
    """Read after a layer that ran on fewer columns, they stand in the same order, one for each text token."""
    backbone = gl.wrap_backbone(qwen2_5_vl())
    inputs, reader = backbone.example_inputs(SIZES), Reader((0, 2))
    half = gl.policies.KeepRatio(0.5)
    stages = [gl.PruneStage(1, Random(), half), gl.PruneStage(2, reader, half)]
    gl.PrunedVLM(backbone, gl.Pruner(stages)).prefill(keys=torch.arange(len(SIZES)), **inputs)
    alone = Reader((0, 2))
    gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(2, alone, half)])).prefill(**inputs)
    torch.testing.assert_close(reader.tokens.text_states[0], alone.tokens.text_states[0])
    assert reader.tokens.text_states[2].shape == alone.tokens.text_states[2].shape
    assert (reader.tokens.text_states[2] - alone.tokens.text_states[2]).abs().max() > 1e-4
    assert torch.equal(reader.tokens.text_sample, alone.tokens.text_sample)


def test_a_layer_that_has_not_run_is_refused() -> None:
    backbone = gl.wrap_backbone(qwen2_5_vl())
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(1, Reader((2,)), gl.policies.KeepRatio(0.5))]))
    with pytest.raises(GlimpseError, match="states of layer 2, but its stage prunes after layer 1"):
        model.prefill(**backbone.example_inputs(SIZES))
