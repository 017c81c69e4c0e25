"""Packed questions are apart, and visual tokens show what pages hold, for every benchmark that can be learned."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from glimpse_lightning.data.glyph_vqa.layout import make_layout
from glimpse_lightning.data.glyph_vqa.words import PLACES
from glimpse_lightning.pretraining.architectures import Architecture, Llava, QwenVL
from glimpse_lightning.pretraining.dense_pages import DensePages
from glimpse_lightning.pretraining.glyph_pages import GlyphPages
from glimpse_lightning.pretraining.packing import IDS, IGNORE, pack
from glimpse_lightning.pretraining.pages import Pages

ALL: list[Pages[Any]] = [GlyphPages(), DensePages()]


def test_words_by_token_marks_what_boxes_hold() -> None:
    layout = make_layout(Random(3))
    words = GlyphPages().words_by_token(layout, 448)
    for item in layout.objects:
        x, y = (item.box[0] + item.box[2]) / 2 - 1, (item.box[1] + item.box[3]) / 2 - 1
        token = int(y // 28) * 16 + int(x // 28)
        shown = {GlyphPages.words[column] for column in np.flatnonzero(words[token] == 1)}
        assert shown == {item.colour, item.shape, item.glyph, PLACES[item.number]}


def test_a_tile_is_one_token_of_four_words() -> None:
    page = DensePages().make(Random(3), 448)
    words = DensePages().words_by_token(page, 448).reshape(16, 16, -1)
    assert set(np.unique(words)) == {0, 1} and (words.sum(-1) > 0).sum() == len(page.tiles)
    for tile in page.tiles:
        shown = {DensePages.words[column] for column in np.flatnonzero(words[tile.row, tile.column])}
        assert shown == {tile.colour, tile.shape, tile.glyph, str(tile.place) if tile.place else "label"}


def test_letters_may_be_read_out_alone() -> None:
    answers = [DensePages(places=places).ask(DensePages().make(Random(3), 224), "list", Random(5)).answer.split()
               for places in (True, False)]  # fmt: skip
    assert answers[0][1::2] == answers[1] and answers[0][0::2] == [str(n) for n in range(len(answers[1]), 0, -1)]


@pytest.mark.parametrize(("architecture", "end"), [(QwenVL(), 2 + 8), (Llava(), 2 + 64)])
@pytest.mark.parametrize("pages", ALL)
def test_packed_questions_see_the_image_and_themselves_only(
    pages: Pages[Any], architecture: Architecture, end: int
) -> None:
    batch = pack(pages, Random(4), 2, 5, image_size=224, suffix=0.5, pixels=False, architecture=architecture)
    seen, prefix = batch.mask[:, 0], 2 + 64 + 1
    (positions, *_) = batch.position_ids if batch.position_ids.ndim == 3 else [batch.position_ids]
    assert not torch.triu(seen, diagonal=1).any()
    assert seen[:, prefix:, :prefix].all()
    for b in range(2):
        for i in range(prefix, batch.input_ids.shape[1]):
            alone = int(seen[b, i, prefix:].sum())
            assert batch.input_ids[b, i] == 0 or alone == int(positions[b, i]) - end
    asked = batch.targets != IGNORE
    assert set(batch.question[asked].tolist()) == set(range(10))
    assert (batch.question[~asked] == -1).all()


@pytest.mark.parametrize(("pages", "families"), [(ALL[0], None), (ALL[1], {"label": 1.0, "listed": 1.0})])
def test_hidden_tokens_are_never_evidence(pages: Pages[Any], families: dict[str, float] | None) -> None:
    whole, part = (
        pack(pages, Random(5), 2, 6, image_size=224, families=families, pixels=False, hide=hide) for hide in (0.0, 1.0)
    )
    image, words = slice(2, 2 + 64), [IDS[word] for word in pages.words]
    for b in range(2):
        for q in range(6):
            row = int((part.question[b] == b * 6 + q).nonzero()[0])
            hidden = ~part.mask[b, 0, row, image]
            assert hidden.any()
            shown = part.visual_words[b][:, words.index(int(part.input_ids[b, row - 1]))] == 1
            if isinstance(pages, DensePages):  # the key is a label's letter, which other tiles may have
                shown &= part.visual_words[b][:, pages.words.index("label")] == 1
            assert shown.any() and not hidden[shown].any()
    assert whole.mask[:, 0, 67:, image].all()
