"""Colours, shapes, letters and paper of GlyphVQA's images, as masks that are blended onto a canvas of pixels."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from glimpse_lightning.data.glyph_vqa.layout import PixelBox

# Light enough for a black glyph on every colour.
RGB = {
    "red": (235, 70, 70), "green": (70, 190, 85), "blue": (80, 135, 250), "yellow": (245, 225, 60),
    "purple": (170, 105, 235), "orange": (245, 150, 40), "cyan": (70, 215, 225), "pink": (250, 150, 205),
}  # fmt: skip
_SHARP = 4  # shapes are drawn this much larger, then averaged down


def _points(shape: str) -> list[tuple[float, float]]:
    """The outline of a shape within the unit square."""
    if shape == "square":
        return [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)]
    if shape == "triangle":
        return [(0.5, 0.0), (1.0, 0.97), (0.0, 0.97)]
    if shape == "diamond":
        return [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)]
    if shape == "cross":
        a, b = 0.28, 0.72
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    if shape == "hexagon":
        return [(0.27, 0.06), (0.73, 0.06), (1.0, 0.5), (0.73, 0.94), (0.27, 0.94), (0.0, 0.5)]
    if shape == "star":
        radii = [(0.54 if k % 2 == 0 else 0.27) for k in range(10)]
        return [
            (0.5 + r * math.sin(math.pi * k / 5), 0.53 - r * math.cos(math.pi * k / 5)) for k, r in enumerate(radii)
        ]
    if shape == "heart":
        turns = [2 * math.pi * k / 40 for k in range(40)]
        return [
            (0.5 + 0.5 * math.sin(t) ** 3,
             0.46 - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 31)
            for t in turns
        ]  # fmt: skip
    raise ValueError(f"Expected a shape of GlyphVQA, but got {shape!r}.")


@lru_cache(maxsize=512)
def shape_mask(shape: str, size: int) -> np.ndarray:
    """Coverage of a shape, float32 [size, size] in 0..1."""
    large = Image.new("L", (size * _SHARP, size * _SHARP))
    pen = ImageDraw.Draw(large)
    if shape == "circle":
        pen.ellipse((2, 2, size * _SHARP - 3, size * _SHARP - 3), fill=255)
    else:
        pen.polygon([(x * (size * _SHARP - 1), y * (size * _SHARP - 1)) for x, y in _points(shape)], fill=255)
    return np.asarray(large.resize((size, size), Image.Resampling.BOX), np.float32) / 255


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # This font comes with Pillow; a font of the system would make images differ between machines.
    return ImageFont.load_default(size)


@lru_cache(maxsize=2048)
def text_mask(text: str, size: int) -> np.ndarray:
    """Coverage of bold ``text``, cropped tightly, float32 [h, w] in 0..1; ``size`` is the font size in pixels."""
    font = _font(size)
    left, top, right, bottom = font.getbbox(text, stroke_width=1)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    pen = ImageDraw.Draw(image)
    pen.text((1 - left, 1 - top), text, fill=255, font=font, stroke_width=0.6 if size >= 18 else 0.4)
    box = image.getbbox()
    return np.asarray(image.crop(box), np.float32) / 255


def blend(canvas: np.ndarray, mask: np.ndarray, x: int, y: int, colour: tuple[int, ...]) -> None:
    """Paint ``colour`` onto ``canvas`` uint8 [H, W, 3] through ``mask``, its corner at (x, y); clips at the edges."""
    top, left = max(0, -y), max(0, -x)
    mask = mask[top : canvas.shape[0] - y, left : canvas.shape[1] - x, None]
    y, x = y + top, x + left
    part = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
    part[:] = part + mask * (np.asarray(colour, np.float32) - part)


def blend_middle(canvas: np.ndarray, mask: np.ndarray, box: PixelBox, colour: tuple[int, ...], down: float = 0) -> None:
    x = round((box[0] + box[2] - mask.shape[1]) / 2)
    y = round((box[1] + box[3] - mask.shape[0]) / 2 + down)
    blend(canvas, mask, x, y, colour)


def background(rng: Random, width: int, height: int) -> np.ndarray:
    """A pale texture, uint8 [height, width, 3]: blotches, stripes or checks under fine grain."""
    noise = np.random.default_rng(rng.getrandbits(63))
    base = np.array([rng.uniform(196, 216) for _ in range(3)], np.float32)
    kind = rng.randrange(4)
    pattern: np.ndarray
    if kind == 0:
        coarse = noise.integers(0, 256, (rng.randint(4, 14), rng.randint(4, 14)), np.uint8)
        pattern = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pattern = pattern / 255 - 0.5
    else:
        x, y = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
        angle, period = rng.uniform(0, math.pi), rng.uniform(9, 60)
        along = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
        if kind == 1:
            pattern = 0.5 * np.sin(along)
        elif kind == 2:
            across = (y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / period)
            pattern = 0.5 * np.sin(along) * np.sin(across)
        else:
            pattern = (x / width - 0.5) * math.cos(angle) + (y / height - 0.5) * math.sin(angle)
    tint = [rng.uniform(10, 40) for _ in range(3)]
    grain = noise.integers(-8, 9, (height, width), np.int8)
    canvas = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        canvas[:, :, channel] = pattern * tint[channel] + (base[channel] + grain)
    return canvas
