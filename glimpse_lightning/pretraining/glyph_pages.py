"""Pages of GlyphVQA as lessons."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from PIL.Image import Image
from typing_extensions import override

from glimpse_lightning.data.glyph_vqa.draw import draw
from glimpse_lightning.data.glyph_vqa.layout import FAMILIES, Layout, PixelBox, Question, ask, make_layout
from glimpse_lightning.data.glyph_vqa.words import PLACES, VISUAL_WORDS
from glimpse_lightning.pretraining.pages import Pages


class GlyphPages(Pages[Layout]):
    """Pages of :class:`~glimpse_lightning.data.glyph_vqa.GlyphVQA`.

    Args:
        crowded: whether pages hold more objects than those of the benchmark, for more training targets a page.
    """

    families = FAMILIES
    words = VISUAL_WORDS + PLACES

    def __init__(self, crowded: bool = False) -> None:
        self.crowded = crowded

    @override
    def make(self, rng: Random, size: int) -> Layout:
        return make_layout(rng, size, size, self.crowded)

    @override
    def ask(self, page: Layout, family: str, rng: Random) -> Question:
        return ask(page, family, rng)

    @override
    def shown(self, page: Layout) -> Sequence[tuple[PixelBox, Sequence[str]]]:
        found: list[tuple[PixelBox, Sequence[str]]] = [
            (item.box, (item.colour, item.shape, item.glyph, PLACES[item.number])) for item in page.objects
        ]
        for row in page.rows:
            found.append((row.label_box, (row.label, PLACES[0])))
            cells = zip(row.glyph_boxes, row.glyphs, PLACES[1:], strict=False)
            found.extend((box, (row.label, glyph, place)) for box, glyph, place in cells)
        return found

    @override
    def draw(self, page: Layout, rng: Random) -> Image:
        return draw(page, rng)
