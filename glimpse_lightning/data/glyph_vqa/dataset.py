"""GlyphVQA: procedural visual questions whose evidence differs in size, made on the fly without any file."""

from __future__ import annotations

from random import Random

from PIL.Image import Image
from typing_extensions import override

from glimpse_lightning.data.glyph_vqa.draw import draw
from glimpse_lightning.data.glyph_vqa.layout import FAMILIES, Layout, Question, ask, make_layout
from glimpse_lightning.data.glyph_vqa.procedural import Procedural


class GlyphVQA(Procedural[Layout]):
    """Procedural questions about drawn images. Question ``i`` of a split is the same on every machine and in every
    worker, and occurs in no other split.

    Args:
        split: ``train``, ``val`` or ``test``.
        size: number of questions; a larger size keeps the first ones unchanged.
        image_size: width and height in pixels, at least 224.
        seed: seed of the images.
        families: families of the questions, in turn; default: all seven.
        questions_per_image: number of consecutive questions about one image. In a batch the vision tower then runs once
            for them, if the backbone supports it.

    Examples:
        >>> sample = gl.GlyphVQA("test", size=500)[0]
        >>> sample.question, sample.answers
        ('what is drawn in cyan', ['heart B'])
    """

    benchmark = "glyph_vqa"
    known = FAMILIES
    least = 224

    @override
    def draw(self, rng: Random) -> tuple[Layout, Image]:
        layout = make_layout(rng, self.image_size, self.image_size)
        return layout, draw(layout, rng)

    @override
    def ask(self, page: Layout, family: str, rng: Random) -> Question:
        return ask(page, family, rng)
