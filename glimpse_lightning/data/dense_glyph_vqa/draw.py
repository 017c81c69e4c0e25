"""Drawing of a DenseGlyphVQA page: tiles side by side, on paper and under noise."""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image

from glimpse_lightning.data.dense_glyph_vqa.page import TILE, Page, Tile
from glimpse_lightning.data.glyph_vqa.paint import RGB, background, blend, blend_middle, shape_mask, text_mask

PLACES = 9
"""Places on a tile's rim, clockwise from the top."""
RIM = 12.0
"""Distance of a place's mark from the tile's middle, in pixels."""
LOWER = {"triangle": 0.14, "heart": -0.05, "star": 0.03}
"""How much lower than its tile's middle a glyph stands, as a share of the shape's size."""
SIZE, LETTER = 25, 13
"""Size of a shape and of a letter, in pixels."""
SMALLER, SMALL_LETTERS = 0.5, 0.05
"""Shares of shapes and of letters that are a pixel smaller on the hard split."""
NOISE, HARD_NOISE = 6, 14
"""Standard deviation of the noise, of 255."""
WHITE, BLACK = (250, 250, 250), (0, 0, 0)


def draw(page: Page, rng: Random, hard: bool = False) -> Image.Image:
    """The RGB image of a page; ``rng`` draws everything that no question asks about.

    Args:
        page: the page.
        rng: generator of all random choices.
        hard: whether some shapes and glyphs are smaller, and the noise is stronger.
    """
    side = page.side * TILE
    canvas = background(rng, side, side)
    for tile in page.tiles:
        top, left = tile.row * TILE, tile.column * TILE
        canvas[top : top + TILE, left : left + TILE] = _art(tile, rng, hard)
    noise = np.random.default_rng(rng.getrandbits(63)).normal(0, HARD_NOISE if hard else NOISE, canvas.shape)
    return Image.fromarray(np.clip(canvas + noise, 0, 255).astype(np.uint8))


def _art(tile: Tile, rng: Random, hard: bool) -> np.ndarray:
    """A tile, uint8 [28, 28, 3]: its shape on pale paper, of a label white on its colour."""
    ink = tuple(min(255, max(0, channel + rng.randint(-12, 12))) for channel in RGB[tile.colour])
    label, size, letter = not tile.place, SIZE, LETTER
    if hard:
        size, letter = size - (rng.random() < SMALLER), letter - (rng.random() < SMALL_LETTERS)
    art = np.empty((TILE, TILE, 3), np.uint8)
    art[:] = ink if label else (rng.randint(205, 235),) * 3
    most = TILE - size
    corner = (rng.randint(most // 2, most - most // 2), rng.randint(most // 2, most - most // 2))
    blend(art, shape_mask(tile.shape, size), *corner, WHITE if label else ink)
    box = (corner[0], corner[1], corner[0] + size, corner[1] + size)
    blend_middle(art, text_mask(tile.glyph, letter), box, (rng.randint(0, 30),) * 3, LOWER.get(tile.shape, 0) * size)
    if tile.place:
        turn = 2 * math.pi * (tile.place - 1) / PLACES
        x, y = TILE / 2 + RIM * math.sin(turn), TILE / 2 - RIM * math.cos(turn)
        blend(art, np.ones((5, 5), np.float32), round(x - 2.5), round(y - 2.5), WHITE)
        blend(art, np.ones((3, 3), np.float32), round(x - 1.5), round(y - 1.5), BLACK)
    return art
