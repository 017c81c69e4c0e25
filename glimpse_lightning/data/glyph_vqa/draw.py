"""Drawing of a GlyphVQA layout: textured background, clutter, coloured shapes with glyphs, form-like rows."""

from __future__ import annotations

import math
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from glimpse_lightning.data.glyph_vqa.layout import GlyphObject, GlyphRow, Layout, PixelBox
from glimpse_lightning.data.glyph_vqa.words import LABELS

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
def _shape_mask(shape: str, size: int) -> np.ndarray:
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
def _text_mask(text: str, size: int) -> np.ndarray:
    """Coverage of bold ``text``, cropped tightly, float32 [h, w] in 0..1; ``size`` is the font size in pixels."""
    font = _font(size)
    left, top, right, bottom = font.getbbox(text, stroke_width=1)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    pen = ImageDraw.Draw(image)
    pen.text((1 - left, 1 - top), text, fill=255, font=font, stroke_width=0.6 if size >= 18 else 0.4)
    box = image.getbbox()
    return np.asarray(image.crop(box), np.float32) / 255


def _blend(canvas: np.ndarray, mask: np.ndarray, x: int, y: int, colour: tuple[int, ...]) -> None:
    """Paint ``colour`` onto ``canvas`` uint8 [H, W, 3] through ``mask``, its corner at (x, y); clips at the edges."""
    top, left = max(0, -y), max(0, -x)
    mask = mask[top : canvas.shape[0] - y, left : canvas.shape[1] - x, None]
    y, x = y + top, x + left
    part = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
    part[:] = part + mask * (np.asarray(colour, np.float32) - part)


def _blend_middle(
    canvas: np.ndarray, mask: np.ndarray, box: PixelBox, colour: tuple[int, ...], down: float = 0
) -> None:
    x = round((box[0] + box[2] - mask.shape[1]) / 2)
    y = round((box[1] + box[3] - mask.shape[0]) / 2 + down)
    _blend(canvas, mask, x, y, colour)


def _background(rng: Random, width: int, height: int) -> np.ndarray:
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


def _scribble(rng: Random, image: Image.Image) -> None:
    """Clutter below the objects: lines, hollow outlines and coloured specks."""
    (width, height), pen = image.size, ImageDraw.Draw(image)
    scale = width * height / 448**2
    for _ in range(round(rng.randint(4, 12) * scale)):
        x, y, shade = rng.uniform(0, width), rng.uniform(0, height), rng.randint(140, 190)
        dx, dy = rng.uniform(-90, 90), rng.uniform(-90, 90)
        ink, kind = (shade, shade, shade), rng.randrange(4)
        if kind == 0:
            pen.rectangle((x, y, x + abs(dx) / 2 + 8, y + abs(dy) / 2 + 8), outline=ink)
        elif kind == 1:
            pen.ellipse((x, y, x + abs(dx) / 2 + 8, y + abs(dy) / 2 + 8), outline=ink)
        else:
            pen.line((x, y, x + dx, y + dy), fill=ink, width=rng.randint(1, 2))
    names = list(RGB)
    for _ in range(round(rng.randint(5, 20) * scale)):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(2, 6)
        pen.ellipse((x, y, x + size, y + size), fill=RGB[rng.choice(names)])


def _draw_row(canvas: np.ndarray, row: GlyphRow, rng: Random) -> None:
    """A form field: label and cells on paper of the label's own tint, each cell with as many dots as its number in the
    row.
    """
    right = row.glyph_boxes[-1][2] + 3
    top, bottom = row.glyph_boxes[0][1] - 2, row.glyph_boxes[0][3] + 2
    tint = tuple(125 + channel // 2 for channel in list(RGB.values())[LABELS.index(row.label)])
    start = row.label_box[0] - 1
    paper, line = np.ones((round(bottom - top), round(right - start)), np.float32), (120, 120, 120)
    _blend(canvas, paper * 0.85, round(start), round(top), tint)
    for y in (top, bottom - 1):
        _blend(canvas, paper[:1], round(start), round(y), line)
    for x in [start, *(box[0] - 3 for box in row.glyph_boxes), right - 1]:
        _blend(canvas, paper[:, :1], round(x), round(top), line)
    ink = (rng.randint(0, 50),) * 3
    _blend_middle(canvas, _text_mask(row.label, 19), row.label_box, ink)
    for place, (glyph, box) in enumerate(zip(row.glyphs, row.glyph_boxes, strict=True), start=1):
        _blend_middle(canvas, _text_mask(glyph, 19), box, ink, -2)
        for dot in range(place):
            _blend(canvas, np.ones((3, 3), np.float32), round(box[0]) + 1 + 4 * dot, round(bottom) - 5, ink)


def _draw_dots(canvas: np.ndarray, item: GlyphObject, size: int) -> None:
    """The number of an object: dots on pale tags in two opposite corners, as on a playing card."""
    dot = 3 if size < 34 else 4
    wide, high = (dot + 1) * item.number + 1, dot + 2
    left, top = round(item.box[0]), round(item.box[1])
    for x, y in ((left, top), (left + size - wide, top + size - high)):
        _blend(canvas, np.ones((high, wide), np.float32), x, y, (250,) * 3)
        for place in range(item.number):
            _blend(canvas, np.ones((dot, dot), np.float32), x + 1 + (dot + 1) * place, y + 1, (0,) * 3)


def draw(layout: Layout, rng: Random) -> Image.Image:
    """The RGB image of a layout; ``rng`` draws everything that no question asks about."""
    paper = Image.fromarray(_background(rng, layout.width, layout.height))
    _scribble(rng, paper)
    canvas = np.array(paper)
    for row in layout.rows:
        _draw_row(canvas, row, rng)
    for item in layout.objects:
        size = round(item.box[2] - item.box[0])
        colour = tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in RGB[item.colour])
        _blend(canvas, _shape_mask(item.shape, size), round(item.box[0]), round(item.box[1]), colour)
        down = {"triangle": 0.12, "heart": -0.04, "star": 0.03}.get(item.shape, 0.0) * size
        small = item.shape in ("triangle", "star", "diamond", "heart")
        mask = _text_mask(item.glyph, round(size * (0.52 if small else 0.6)))
        _blend_middle(canvas, mask, item.box, (rng.randint(0, 25),) * 3, down)
        _draw_dots(canvas, item, size)
    return Image.fromarray(canvas)
