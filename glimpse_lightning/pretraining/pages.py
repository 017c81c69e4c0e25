"""What pretraining needs of a drawn benchmark: pages, questions about them, and the words that visual tokens show."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from random import Random
from typing import ClassVar, Generic, TypeVar

import numpy as np
from PIL.Image import Image

from glimpse_lightning.data.glyph_vqa.layout import PixelBox, Question

TOKEN = 28
"""Side of a merged visual token in pixels."""

Page = TypeVar("Page")


class Pages(ABC, Generic[Page]):
    """The pages of a drawn benchmark as lessons.

    Attributes:
        families: names of the families of questions.
        words: every word that a part of a page can show.
    """

    families: ClassVar[tuple[str, ...]]
    words: ClassVar[tuple[str, ...]]

    @abstractmethod
    def make(self, rng: Random, size: int) -> Page:
        """A random page, ``size`` pixels on a side."""

    @abstractmethod
    def ask(self, page: Page, family: str, rng: Random) -> Question:
        """A random question of ``family`` about ``page``."""

    @abstractmethod
    def shown(self, page: Page) -> Sequence[tuple[PixelBox, Sequence[str]]]:
        """Words that a page shows, by the boxes that show them."""

    @abstractmethod
    def draw(self, page: Page, rng: Random) -> Image:
        """The RGB image of ``page``."""

    def words_by_token(self, page: Page, size: int) -> np.ndarray:
        """Words that each visual token shows: int8 [N, W] of 1, 0 and -1 (a small part, counted neither way).

        Args:
            page: the page.
            size: its width and height in pixels.
        """
        side, columns = size // TOKEN, {word: column for column, word in enumerate(self.words)}
        found = np.zeros((side, side, len(columns)), np.int8)
        for box, words in self.shown(page):
            held, sliver = tokens_of(box, side)
            for word in words:
                plane = found[:, :, columns[word]]
                plane[sliver & (plane == 0)] = -1
                plane[held] = 1
        return found.reshape(side * side, -1)


def tokens_of(box: PixelBox, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks [side, side] of the tokens that hold at least 15 % of a box, and of those that hold less.

    Args:
        box: the box, in pixels.
        side: visual tokens on a side of the page.
    """
    at = np.arange(side) * TOKEN
    wide = np.clip(np.minimum(box[2], at + TOKEN) - np.maximum(box[0], at), 0, None)
    high = np.clip(np.minimum(box[3], at + TOKEN) - np.maximum(box[1], at), 0, None)
    part = high[:, None] * wide[None, :] / ((box[2] - box[0]) * (box[3] - box[1]))
    return part >= 0.15, (part > 0.01) & (part < 0.15)
