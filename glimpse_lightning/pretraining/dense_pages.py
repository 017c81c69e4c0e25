"""Pages of DenseGlyphVQA as lessons."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from PIL.Image import Image
from typing_extensions import override

from glimpse_lightning.data.dense_glyph_vqa.draw import draw
from glimpse_lightning.data.dense_glyph_vqa.page import FAMILIES, LETTERS, TILE, Page, ask, make_page
from glimpse_lightning.data.glyph_vqa.layout import PixelBox, Question
from glimpse_lightning.data.glyph_vqa.words import COLOURS, COUNTS, SHAPES
from glimpse_lightning.pretraining.pages import Pages

LABEL = "label"
"""The word that a group's label shows in the place of a number."""


class DensePages(Pages[Page]):
    """Pages of :class:`~glimpse_lightning.data.dense_glyph_vqa.DenseGlyphVQA`.

    Args:
        hard: whether they are those of the hard split.
        places: whether answers have places next to letters, as the benchmark's. Without them the first letter takes
            all steps at once, and two of them are learned sooner: 59 % of the lists by way of a label after 1,200
            steps on small pages, where with places it was 2 %.
    """

    families = FAMILIES
    words = COLOURS + SHAPES + LETTERS + COUNTS + (LABEL,)

    def __init__(self, hard: bool = False, places: bool = True) -> None:
        self.hard, self.places = hard, places

    @override
    def make(self, rng: Random, size: int) -> Page:
        return make_page(rng, size // TILE, self.hard)

    @override
    def ask(self, page: Page, family: str, rng: Random) -> Question:
        return ask(page, family, rng, self.places)

    @override
    def shown(self, page: Page) -> Sequence[tuple[PixelBox, Sequence[str]]]:
        return [
            (tile.box, (tile.colour, tile.shape, tile.glyph, str(tile.place) if tile.place else LABEL))
            for tile in page.tiles
        ]

    @override
    def draw(self, page: Page, rng: Random) -> Image:
        return draw(page, rng, self.hard)
