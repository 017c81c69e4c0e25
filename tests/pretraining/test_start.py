"""The random weights that a pretraining begins with."""

from __future__ import annotations

from random import Random

import pytest
import torch

from glimpse_lightning.backbones.embedded import TINY, folder_of
from glimpse_lightning.data.glyph_vqa.words import IMAGE_PAD
from glimpse_lightning.pretraining.dense_pages import DensePages
from glimpse_lightning.pretraining.losses import ideal_features
from glimpse_lightning.pretraining.packing import IDS
from glimpse_lightning.pretraining.start import new_model

PAGES, FOLDER = DensePages(), folder_of(TINY)


@pytest.mark.parametrize("apart", [False, True])
def test_words_look_as_they_are_said_or_at_right_angles_to_all_of_that(apart: bool) -> None:
    model, looks = new_model(FOLDER, PAGES.words, apart)
    said = model.get_input_embeddings().weight[[IDS[word] for word in (*PAGES.words, IMAGE_PAD)]]
    same = torch.eye(len(said))
    torch.testing.assert_close(looks @ looks.T, same, atol=1e-5, rtol=0)
    torch.testing.assert_close(looks @ said.T, torch.zeros_like(same) if apart else same, atol=1e-5, rtol=0)


@pytest.mark.parametrize("apart", [False, True])
def test_heads_find_the_tile_of_a_questions_words(apart: bool) -> None:
    """In most heads of every layer, without positions, before any training."""
    torch.manual_seed(0)
    text = {"num_attention_heads": 3, "num_key_value_heads": 3}
    model, looks = new_model(FOLDER, PAGES.words, apart, text)
    page = PAGES.make(Random(0), 224)
    features = ideal_features(looks, torch.from_numpy(PAGES.words_by_token(page, 224)), seed=0)
    tile = page.tiles[5]
    asked = [tile.colour, tile.shape, str(tile.place)] if tile.place else [tile.colour, tile.shape, "label"]
    query = model.get_input_embeddings().weight[[IDS[word] for word in asked]].sum(0)
    found = []
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        q = attention.q_proj(layer.input_layernorm(query)).view(3, -1)
        k = attention.k_proj(layer.input_layernorm(features)).view(len(features), 3, -1)
        found += torch.einsum("hd,nhd->hn", q, k).argmax(1).tolist()
    assert found.count(tile.row * 8 + tile.column) >= 0.9 * len(found)


def test_a_seed_gives_the_same_weights() -> None:
    one, other, third = (new_model(FOLDER, PAGES.words, True, seed=seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], other[name]) for name in one)
    name = "model.language_model.layers.0.self_attn.k_proj.weight"
    assert not torch.equal(one[name], third[name])
