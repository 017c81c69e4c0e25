"""GlyphVQA: procedural visual questions whose evidence differs in size, made on the fly without any file."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from PIL.Image import Image
from torch.utils.data import Dataset

from glimpse_lightning.data.digest import GENERATED
from glimpse_lightning.data.glyph_vqa.draw import draw
from glimpse_lightning.data.glyph_vqa.layout import FAMILIES, Layout, PixelBox, ask, make_layout
from glimpse_lightning.data.sample import Box, Sample
from glimpse_lightning.runtime.keys import stable_key

SPLITS = ("train", "val", "test")


def _normalised(boxes: Sequence[PixelBox], layout: Layout) -> list[Box]:
    """Boxes in [0, 1], clipped to the image."""
    return [
        (
            max(0.0, x1 / layout.width),
            max(0.0, y1 / layout.height),
            min(1.0, x2 / layout.width),
            min(1.0, y2 / layout.height),
        )
        for x1, y1, x2, y2 in boxes
    ]


class GlyphVQA(Dataset[Sample]):
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

    identified_by = GENERATED

    def __init__(
        self,
        split: str = "train",
        size: int = 2000,
        image_size: int = 448,
        seed: int = 0,
        families: list[str] | None = None,
        questions_per_image: int = 1,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"Expected argument `split` to be one of {', '.join(SPLITS)}, but got {split!r}.")
        if size < 1:
            raise ValueError(f"Expected argument `size` to be at least 1, but got {size}.")
        if image_size < 224:
            raise ValueError(f"Expected argument `image_size` to be at least 224, but got {image_size}.")
        if questions_per_image < 1:
            raise ValueError(
                f"Expected argument `questions_per_image` to be at least 1, but got {questions_per_image}."
            )
        unknown = sorted(set(families or ()) - set(FAMILIES))
        if unknown or families == []:
            raise ValueError(f"Expected argument `families` to be out of {', '.join(FAMILIES)}, but got {families}.")
        self.split, self.size, self.image_size, self.seed = split, size, image_size, seed
        self.families = tuple(families or FAMILIES)
        self.questions_per_image = questions_per_image
        self._drawn: tuple[str, Layout, Image] | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"Expected an index below {self.size}, but got {index}.")
        name = f"glyph_vqa/{self.split}/{self.seed}/{self.image_size}/{index}"
        layout, image = self._image(index // self.questions_per_image)
        question = ask(layout, self.families[index % len(self.families)], Random(name))
        return Sample(
            id=name,
            key=stable_key(name),
            question=question.text,
            answers=[question.answer],
            images=[image],
            boxes=[_normalised(question.boxes, layout)],
            family=question.family,
        )

    def identity(self, index: int) -> list[Any]:
        """The values that determine question ``index``."""
        family = self.families[index % len(self.families)]
        return [self.split, self.seed, self.image_size, index, family, self.questions_per_image]

    def _image(self, number: int) -> tuple[Layout, Image]:
        name = f"glyph_vqa/{self.split}/{self.seed}/{self.image_size}/image {number}"
        if self._drawn is None or self._drawn[0] != name:
            rng = Random(name)  # strings are hashed by SHA-512: equal on every platform, and other for each split
            layout = make_layout(rng, self.image_size, self.image_size)
            self._drawn = (name, layout, draw(layout, rng))
        return self._drawn[1:]
