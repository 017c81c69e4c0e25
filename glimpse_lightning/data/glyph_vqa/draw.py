"""Drawing of a GlyphVQA layout: textured background, clutter, coloured shapes with glyphs, form-like rows."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image, ImageDraw

from glimpse_lightning.data.glyph_vqa.layout import GlyphObject, GlyphRow, Layout
from glimpse_lightning.data.glyph_vqa.paint import RGB, background, blend, blend_middle, shape_mask, text_mask
from glimpse_lightning.data.glyph_vqa.words import LABELS


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
    blend(canvas, paper * 0.85, round(start), round(top), tint)
    for y in (top, bottom - 1):
        blend(canvas, paper[:1], round(start), round(y), line)
    for x in [start, *(box[0] - 3 for box in row.glyph_boxes), right - 1]:
        blend(canvas, paper[:, :1], round(x), round(top), line)
    ink = (rng.randint(0, 50),) * 3
    blend_middle(canvas, text_mask(row.label, 19), row.label_box, ink)
    for place, (glyph, box) in enumerate(zip(row.glyphs, row.glyph_boxes, strict=True), start=1):
        blend_middle(canvas, text_mask(glyph, 19), box, ink, -2)
        for dot in range(place):
            blend(canvas, np.ones((3, 3), np.float32), round(box[0]) + 1 + 4 * dot, round(bottom) - 5, ink)


def _draw_dots(canvas: np.ndarray, item: GlyphObject, size: int) -> None:
    """The number of an object: dots on pale tags in two opposite corners, as on a playing card."""
    dot = 3 if size < 34 else 4
    wide, high = (dot + 1) * item.number + 1, dot + 2
    left, top = round(item.box[0]), round(item.box[1])
    for x, y in ((left, top), (left + size - wide, top + size - high)):
        blend(canvas, np.ones((high, wide), np.float32), x, y, (250,) * 3)
        for place in range(item.number):
            blend(canvas, np.ones((dot, dot), np.float32), x + 1 + (dot + 1) * place, y + 1, (0,) * 3)


def draw(layout: Layout, rng: Random) -> Image.Image:
    """The RGB image of a layout; ``rng`` draws everything that no question asks about."""
    paper = Image.fromarray(background(rng, layout.width, layout.height))
    _scribble(rng, paper)
    canvas = np.array(paper)
    for row in layout.rows:
        _draw_row(canvas, row, rng)
    for item in layout.objects:
        size = round(item.box[2] - item.box[0])
        colour = tuple(min(255, max(0, channel + rng.randint(-10, 10))) for channel in RGB[item.colour])
        blend(canvas, shape_mask(item.shape, size), round(item.box[0]), round(item.box[1]), colour)
        down = {"triangle": 0.12, "heart": -0.04, "star": 0.03}.get(item.shape, 0.0) * size
        small = item.shape in ("triangle", "star", "diamond", "heart")
        mask = text_mask(item.glyph, round(size * (0.52 if small else 0.6)))
        blend_middle(canvas, mask, item.box, (rng.randint(0, 25),) * 3, down)
        _draw_dots(canvas, item, size)
    return Image.fromarray(canvas)
