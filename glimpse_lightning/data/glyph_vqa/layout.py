"""Layout of a GlyphVQA image, and the questions about it, without pixels."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from glimpse_lightning.data.glyph_vqa.words import COLOURS, GLYPHS, LABELS, SHAPES

SLOT = 56
PixelBox = tuple[float, float, float, float]
FAMILIES = ("read", "name", "compare", "neighbour", "row", "list", "count")


@dataclass
class GlyphObject:
    """A coloured shape holding a glyph, with as many dots as its number within its colour; ``box`` in pixels."""

    glyph: str
    colour: str
    shape: str
    box: PixelBox
    number: int = 1


@dataclass
class GlyphRow:
    """A form-like line: a label, then three or four glyphs in cells of 28 pixels; boxes in pixels.

    The cell of the n-th glyph shows n dots.
    """

    label: str
    glyphs: list[str]
    label_box: PixelBox
    glyph_boxes: list[PixelBox]


@dataclass
class Layout:
    """The objects and rows of an image of ``width`` x ``height`` pixels. Each glyph occurs once."""

    width: int
    height: int
    objects: list[GlyphObject]
    rows: list[GlyphRow]


@dataclass
class Question:
    """A question, its only right answer and the pixel boxes of its evidence."""

    family: str
    text: str
    answer: str
    boxes: list[PixelBox]


def _centred(x: float, y: float, size: float) -> PixelBox:
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def _place_rows(rng: Random, columns: int, lines: int, count: int, free: set[tuple[int, int]]) -> list[GlyphRow]:
    """Reserve four slots side by side for each row and place its label and cells in them (glyphs come later)."""
    rows: list[GlyphRow] = []
    for label in rng.sample(LABELS, count):
        starts = [(x, y) for x in range(columns - 3) for y in range(lines) if all((x + k, y) in free for k in range(4))]
        if not starts:
            break
        x, y = rng.choice(starts)
        free.difference_update((x + k, y) for k in range(4))
        middle, left = y * SLOT + 14 + 28 * rng.randrange(2) + rng.uniform(-2, 2), x * SLOT + rng.uniform(-2, 2)
        cells = [_centred(left + SLOT + 28 * k + 14, middle, 22) for k in range(rng.randint(3, 4))]
        rows.append(GlyphRow(label, [], (left + 2, middle - 10, left + SLOT - 4, middle + 10), cells))
    return rows


def _object_box(rng: Random, x: int, y: int) -> PixelBox:
    """An object in the slot whose corner is at (x, y)."""
    if rng.random() < 0.5:  # on the 28-pixel grid: one visual token holds the whole object
        return _centred(x + 14, y + 14, 28)
    size = rng.randint(34, 46)  # across the corner of four visual tokens
    slack = min(7.0, (SLOT + 2 - size) / 2)
    shift_x, shift_y = rng.uniform(-slack, slack), rng.uniform(-slack, slack)
    return _centred(round(x + 28 + shift_x), round(y + 28 + shift_y), size)


def _varied(rng: Random, names: tuple[str, ...], count: int) -> list[str]:
    """``count`` names, at least one of them used once and one used two or three times, none more often."""
    while True:
        pool = rng.sample(names, min(len(names), rng.randint(5, 8)))
        weights = [rng.choice((1, 1, 2, 4)) for _ in pool]
        picked = rng.choices(pool, weights, k=count)
        uses = [picked.count(name) for name in pool]
        if 1 in uses and 2 <= max(uses) <= 3:
            return picked


def make_layout(rng: Random, width: int = 448, height: int = 448, crowded: bool = False) -> Layout:
    """A random layout; smaller images hold fewer objects. Both sides must be at least 224 pixels.

    ``crowded`` layouts, used in pretraining, hold twelve objects.
    """
    columns, lines = width // SLOT, height // SLOT
    if columns < 4 or lines < 4:
        raise ValueError(f"Expected GlyphVQA images of at least 224 x 224 pixels, but got {width} x {height}.")
    large = columns * lines >= 48
    free = {(x, y) for x in range(columns) for y in range(lines)}
    rows = _place_rows(rng, columns, lines, 2 if large else 1, free)
    wanted = 12 if crowded else rng.randint(8, 11) if large else rng.randint(4, 7)
    slots = rng.sample(sorted(free), min(len(free), wanted))
    boxes = [_object_box(rng, x * SLOT, y * SLOT) for x, y in slots]
    glyphs = rng.sample(GLYPHS, len(GLYPHS))
    colours, shapes = _varied(rng, COLOURS, len(boxes)), _varied(rng, SHAPES, len(boxes))
    objects = [GlyphObject(*words) for words in zip(glyphs, colours, shapes, boxes, strict=False)]
    rest = glyphs[len(objects) :]
    for item in objects:
        item.number = 1 + sum(other.colour == item.colour for other in objects[: objects.index(item)])
    for number, row in enumerate(rows):  # every glyph occurs once in an image: each question has one answer
        length = min(len(row.glyph_boxes), len(rest) - 3 * (len(rows) - 1 - number))
        row.glyphs, row.glyph_boxes, rest = rest[:length], row.glyph_boxes[:length], rest[length:]
    return Layout(width, height, objects, rows)


def _unique(items: list[GlyphObject], attribute: str) -> list[GlyphObject]:
    values = [getattr(item, attribute) for item in items]
    return [item for item, value in zip(items, values, strict=True) if values.count(value) == 1]


def _read(layout: Layout, rng: Random) -> Question:
    if rng.random() < 0.5:
        item = rng.choice(_unique(layout.objects, "shape"))
        return Question("read", f"what is in the {item.shape}", f"{item.colour} {item.glyph}", [item.box])
    item = rng.choice(_unique(layout.objects, "colour"))
    return Question("read", f"what is drawn in {item.colour}", f"{item.shape} {item.glyph}", [item.box])


def _name(layout: Layout, rng: Random) -> Question:
    item = rng.choice(layout.objects)
    return Question("name", f"what holds {item.glyph}", f"{item.colour} {item.shape}", [item.box])


def _compare(layout: Layout, rng: Random) -> Question:
    attribute = rng.choice(("colour", "shape"))
    first, second = rng.sample(layout.objects, 2)
    if rng.random() < 0.4:  # else nearly every answer would be "different"
        pairs = [
            (a, b) for a in layout.objects for b in layout.objects
            if a is not b and getattr(a, attribute) == getattr(b, attribute)
        ]  # fmt: skip
        first, second = rng.choice(pairs)
    one, two = getattr(first, attribute), getattr(second, attribute)
    text = f"compare the {attribute}s of {first.glyph} and {second.glyph}"
    return Question("compare", text, f"{one} {two} {'same' if one == two else 'different'}", [first.box, second.box])


def _neighbour(layout: Layout, rng: Random) -> Question:
    row = rng.choice(layout.rows)
    key = rng.choice(row.glyphs)
    boxes = [row.label_box, *row.glyph_boxes]
    return Question("neighbour", f"what is by {key}", f"{row.label} {' '.join(row.glyphs)}", boxes)


def _row(layout: Layout, rng: Random) -> Question:
    row = rng.choice(layout.rows)
    boxes = [row.label_box, *row.glyph_boxes]
    return Question("row", f"list all in {row.label}", " ".join(row.glyphs), boxes)


def _group(layout: Layout, rng: Random) -> list[GlyphObject]:
    """The two or three objects of a colour, from the most dots to a single dot."""
    colours = [item.colour for item in layout.objects]
    colour = rng.choice(sorted({colour for colour in colours if 2 <= colours.count(colour) <= 3}))
    return sorted((item for item in layout.objects if item.colour == colour), key=lambda item: -item.number)


def _list(layout: Layout, rng: Random) -> Question:
    group = _group(layout, rng)
    glyphs = " ".join(item.glyph for item in group)
    return Question("list", f"list all in {group[0].colour}", glyphs, [item.box for item in group])


def _count(layout: Layout, rng: Random) -> Question:
    group = _group(layout, rng)
    shapes = " ".join(item.shape for item in group)
    text = f"name and count all in {group[0].colour}"
    return Question("count", text, f"{shapes} {len(group)}", [item.box for item in group])


_ASK = dict(zip(FAMILIES, (_read, _name, _compare, _neighbour, _row, _list, _count), strict=True))


def ask(layout: Layout, family: str, rng: Random) -> Question:
    """A question of ``family`` about ``layout``. Every layout can be asked about every family."""
    if family not in _ASK:
        raise ValueError(f"Expected a GlyphVQA family out of {', '.join(FAMILIES)}, but got {family!r}.")
    return _ASK[family](layout, rng)
