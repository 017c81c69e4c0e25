"""A model to begin with: random weights in which attention can find words, and copy them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from glimpse_lightning.data.glyph_vqa.words import IMAGE_PAD
from glimpse_lightning.pretraining.packing import IDS

SHARPNESS = 0.4
"""Length of a word in the queries and keys of a head."""
COPIED = 0.5
"""Length of a word in the values of a head."""
OTHERS = 0.3
"""Length of what is no word, relative to a word."""
NOISE = 0.2
"""Noise of the queries, in standard deviations: heads that share keys would stay twins without it."""


def new_model(
    folder: str | Path, words: Sequence[str], apart: bool = False, text: Mapping[str, Any] = {}, seed: int = 0
) -> tuple[PreTrainedModel, Tensor]:
    """A model with random weights, and how words look in its visual tokens: [W + 1, D], the placeholder's last.

    Embeddings of the words that an image can show are orthonormal; all others have length one (the head starts as their
    copy). With Hugging Face's small initialisation, the first layer's normalisation would scale noise up to the size of
    a visual token's words. Every head attends to tokens with the words that the query has, and copies their words
    ("mimetic initialization", arXiv 2305.09828, in the words' own space): finding a tile by three words is learned in a
    third of the steps.

    Args:
        folder: folder with ``config.json``.
        words: words that an image can show.
        apart: whether words look otherwise in visual tokens than their embeddings, at right angles to all of these, so
            that the cosine of a question's word and a token that shows it is no built-in relevance. Queries, keys and
            values begin by reading either; what heads write is said. (With queries that did not read looks, no
            question of two steps was learned in 1,200 steps.)
        text: changes of the configuration's ``text_config``.
        seed: seed of the weights.
    """
    torch.manual_seed(seed)
    # Eager attention trains 1.3 to 1.6 times faster than SDPA here: short sequences, small heads, bf16 on a CPU.
    config = AutoConfig.from_pretrained(folder, attn_implementation="eager")
    for key, value in text.items():
        setattr(config.text_config, key, value)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    table = model.get_input_embeddings().weight.data
    size = table.shape[1]
    table.normal_(std=size**-0.5)
    directions, count = _orthonormal(size), len(words) + 1
    said = directions[:count]
    looks = directions[count : 2 * count] if apart else said
    table[[IDS[word] for word in (*words, IMAGE_PAD)]] = said
    model.lm_head.weight.data.copy_(table)
    for layer in model.model.language_model.layers:
        _look_up_words(layer.self_attn, said, looks)
    return model, looks.clone()


def _look_up_words(attention: Any, said: Tensor, looks: Tensor) -> None:
    """Start a layer's heads: [heads * d, D] projections."""
    head, shared = attention.head_dim, attention.num_key_value_groups
    heads = attention.o_proj.in_features // head
    both = said if looks is said else said + looks
    reads, writes = [], []
    for _ in range(heads // shared):
        turn = _orthonormal(max(head, len(said)))[:head, : len(said)]
        reads.append(turn @ both + OTHERS * _orthonormal(said.shape[1])[:head])
        writes.append(turn @ said)
    keys = torch.cat(reads)
    asked, written = (torch.cat([each for each in some for _ in range(shared)]) for some in (reads, writes))
    queries = attention.q_proj.weight.data.copy_(SHARPNESS * asked)
    queries += NOISE * queries.std() * torch.randn_like(queries)
    attention.k_proj.weight.data.copy_(SHARPNESS * keys)
    attention.v_proj.weight.data.copy_(COPIED * keys)
    attention.o_proj.weight.data.copy_(COPIED * written.T)


def _orthonormal(size: int) -> Tensor:
    """A random rotation: [size, size]."""
    return torch.linalg.qr(torch.randn(size, size))[0]
