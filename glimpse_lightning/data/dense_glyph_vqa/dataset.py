"""DenseGlyphVQA: procedural visual questions about pages on which nearly every visual token can be asked about."""

from __future__ import annotations

from random import Random
from typing import Any

from PIL.Image import Image
from typing_extensions import override

from glimpse_lightning.data.dense_glyph_vqa.draw import draw
from glimpse_lightning.data.dense_glyph_vqa.page import FAMILIES, TILE, Page, ask, make_page
from glimpse_lightning.data.glyph_vqa.layout import Question
from glimpse_lightning.data.glyph_vqa.procedural import Procedural


class DenseGlyphVQA(Procedural[Page]):
    """Procedural questions about pages full of tiles, each of which can be asked about: only the question tells which
    visual tokens matter.

    Nine tenths of the visual tokens show a tile of its own colour, shape, glyph and place. The evidence of a question
    is between 1 token and some 30. Families ``entry``, ``listed``, ``both``, ``three`` and ``compare`` take two steps:
    a label names the colour and the shape of the tiles that are asked for.

    Args:
        split: ``train``, ``val`` or ``test``.
        size: number of questions; a larger size keeps the first ones unchanged.
        image_size: width and height in pixels, a multiple of 28 and at least 224.
        seed: seed of the pages.
        families: families of the questions, in turn; default: all eight.
        questions_per_image: number of consecutive questions about one page.
        hard: whether some shapes and glyphs are smaller, noise is stronger and groups are larger.

    Examples:
        >>> sample = gl.DenseGlyphVQA("test", size=8)[4]
        >>> sample.question, sample.answers, len(sample.boxes[0])
        ('list all in label B', ['4 P 3 T 2 H 1 L'], 5)
    """

    benchmark = "dense_glyph_vqa"
    known = FAMILIES
    least = 8 * TILE

    def __init__(self, *args: Any, hard: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.image_size % TILE:
            raise ValueError(f"Expected argument `image_size` to be a multiple of {TILE}, but got {self.image_size}.")
        self.hard = hard

    @override
    def prefix(self) -> str:
        return super().prefix() + ("/hard" if self.hard else "")

    @override
    def identity(self, index: int) -> list[Any]:
        return [*super().identity(index), self.hard]

    @override
    def draw(self, rng: Random) -> tuple[Page, Image]:
        page = make_page(rng, self.image_size // TILE, self.hard)
        return page, draw(page, rng, self.hard)

    @override
    def ask(self, page: Page, family: str, rng: Random) -> Question:
        return ask(page, family, rng)
