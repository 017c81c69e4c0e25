"""Base class of benchmarks that are drawn on the fly: question ``i`` of a split follows from its name alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Generic, TypeVar

from PIL.Image import Image
from torch.utils.data import Dataset

from glimpse_lightning.data.digest import GENERATED
from glimpse_lightning.data.glyph_vqa.layout import PixelBox, Question
from glimpse_lightning.data.sample import Box, Sample
from glimpse_lightning.runtime.keys import stable_key

SPLITS = ("train", "val", "test")

Page = TypeVar("Page")
"""What is drawn, and what questions are about."""


class Procedural(Dataset[Sample], Generic[Page]):
    """Questions about drawn images, of several families in turn.

    Args:
        split: ``train``, ``val`` or ``test``.
        size: number of questions; a larger size keeps the first ones unchanged.
        image_size: width and height in pixels.
        seed: seed of the images.
        families: families of the questions, in turn; default: all.
        questions_per_image: number of consecutive questions about one image.

    Attributes:
        benchmark: name of the benchmark, with which the samples' names begin.
        known: names of the families.
        least: smallest width and height in pixels.
    """

    identified_by = GENERATED
    benchmark: ClassVar[str]
    known: ClassVar[tuple[str, ...]]
    least: ClassVar[int]

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
        if image_size < self.least:
            raise ValueError(f"Expected argument `image_size` to be at least {self.least}, but got {image_size}.")
        if questions_per_image < 1:
            raise ValueError(
                f"Expected argument `questions_per_image` to be at least 1, but got {questions_per_image}."
            )
        unknown = sorted(set(families or ()) - set(self.known))
        if unknown or families == []:
            raise ValueError(f"Expected argument `families` to be out of {', '.join(self.known)}, but got {families}.")
        self.split, self.size, self.image_size, self.seed = split, size, image_size, seed
        self.families = tuple(families or self.known)
        self.questions_per_image = questions_per_image
        self._drawn: tuple[str, Page, Image] | None = None

    @abstractmethod
    def draw(self, rng: Random) -> tuple[Page, Image]:
        """A random page and its image, of ``image_size`` pixels on each side."""

    @abstractmethod
    def ask(self, page: Page, family: str, rng: Random) -> Question:
        """A random question of ``family`` about ``page``."""

    def prefix(self) -> str:
        """Beginning of the samples' names: all that they follow from."""
        return f"{self.benchmark}/{self.split}/{self.seed}/{self.image_size}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.size:
            raise IndexError(f"Expected an index below {self.size}, but got {index}.")
        name = f"{self.prefix()}/{index}"
        page, image = self._image(index // self.questions_per_image)
        question = self.ask(page, self.families[index % len(self.families)], Random(name))
        return Sample(
            id=name,
            key=stable_key(name),
            question=question.text,
            answers=[question.answer],
            images=[image],
            boxes=[_normalised(question.boxes, image)],
            family=question.family,
        )

    def identity(self, index: int) -> list[Any]:
        """The values that determine question ``index``."""
        family = self.families[index % len(self.families)]
        return [self.split, self.seed, self.image_size, index, family, self.questions_per_image]

    def _image(self, number: int) -> tuple[Page, Image]:
        name = f"{self.prefix()}/image {number}"
        if self._drawn is None or self._drawn[0] != name:
            # Strings are hashed by SHA-512: equal on every platform, and other for each split.
            self._drawn = (name, *self.draw(Random(name)))
        return self._drawn[1:]


def _normalised(boxes: Sequence[PixelBox], image: Image) -> list[Box]:
    """Boxes in [0, 1], clipped to the image."""
    return [
        (
            max(0.0, x1 / image.width),
            max(0.0, y1 / image.height),
            min(1.0, x2 / image.width),
            min(1.0, y2 / image.height),
        )
        for x1, y1, x2, y2 in boxes
    ]
