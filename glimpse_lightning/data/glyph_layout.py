"""What stands where in a GlyphVQA image, and the questions one can ask about it. No pixels here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from glimpse_lightning.data.glyph_words import COLOURS, GLYPHS, LABELS, SHAPES, SIDES

SLOT = 56
PixelBox = tuple[float, float, float, float]
FAMILIES = ("read", "name", "compare", "neighbour", "row", "list", "count")


@dataclass
class GlyphObject:
    """A coloured shape holding a glyph; ``box`` in pixels."""

    glyph: str
    colour: str
    shape: str
    box: PixelBox


@dataclass
class GlyphRow:
    """A form-like line: a label, then three to five glyphs in cells of 28 pixels; boxes in pixels."""

    label: str
    glyphs: list[str]
    label_box: PixelBox
    glyph_boxes: list[PixelBox]


@dataclass
class Layout:
    """All that can be asked about in one image of ``width`` x ``height`` pixels; ``pairs`` stand side by side."""

    width: int
    height: int
    objects: list[GlyphObject]
    pairs: list[tuple[GlyphObject, GlyphObject]]
    rows: list[GlyphRow]


@dataclass
class Question:
    """A question, its answer and the pixel boxes of what one must see to answer it."""

    family: str
    text: str
    answer: str
    boxes: list[PixelBox]


def _centred(x: float, y: float, size: float) -> PixelBox:
    return (x - size / 2, y - size / 2, x + size / 2, y + size / 2)


def _place_rows(
    rng: Random, columns: int, lines: int, count: int, free: set[tuple[int, int]], on_grid: float
) -> list[GlyphRow]:
    """Reserve four slots side by side for each row and place its label and cells in them (glyphs come later)."""
    rows: list[GlyphRow] = []
    for label in rng.sample(LABELS, count):
        starts = [(x, y) for x in range(columns - 3) for y in range(lines) if all((x + k, y) in free for k in range(4))]
        if not starts:
            break
        x, y = rng.choice(starts)
        free.difference_update((x + k, y) for k in range(4))
        aligned = rng.random() < on_grid
        middle = y * SLOT + (14 if aligned else 28 + rng.uniform(-8, 8))
        left = x * SLOT + (0 if aligned else rng.uniform(0, 5))
        cells = [_centred(left + SLOT + 28 * k + 14, middle, 22) for k in range(rng.randint(3, 5))]
        rows.append(GlyphRow(label, [], (left + 2, middle - 10, left + SLOT - 4, middle + 10), cells))
    return rows


def _single_box(rng: Random, x: int, y: int, on_grid: float) -> PixelBox:
    """An object alone in its slot, whose corner is at (x, y)."""
    if rng.random() < on_grid:  # one visual token holds the whole object
        return _centred(x + 14, y + 14, 28)
    size = rng.randint(34, 46)  # across the corner of four visual tokens
    slack = min(7.0, (SLOT + 2 - size) / 2)
    shift_x, shift_y = rng.uniform(-slack, slack), rng.uniform(-slack, slack)
    return _centred(round(x + 28 + shift_x), round(y + 28 + shift_y), size)


def _pair_boxes(rng: Random, x: int, y: int, on_grid: float) -> list[PixelBox]:
    """Two objects side by side in one slot, whose corner is at (x, y)."""
    middle = y + (14 if rng.random() < on_grid else round(28 + rng.uniform(-8, 8)))
    return [_centred(x + 14, middle, 28), _centred(x + 42, middle, 28)]


def _varied(rng: Random, names: tuple[str, ...], count: int) -> list[str]:
    """``count`` names, at least one of them used once and one used two to four times, none more than four."""
    while True:
        pool = rng.sample(names, min(len(names), rng.randint(4, 7)))
        weights = [rng.choice((1, 1, 2, 4)) for _ in pool]
        picked = rng.choices(pool, weights, k=count)
        uses = [picked.count(name) for name in pool]
        if 1 in uses and 2 <= max(uses) <= 4:
            return picked


def make_layout(
    rng: Random, width: int = 448, height: int = 448, crowded: bool = False, on_grid: float = 0.5
) -> Layout:
    """A random layout; smaller images hold fewer objects. Both sides must be at least 224 pixels.

    ``crowded`` images (for training to see) hold twelve objects or more; ``on_grid`` is the share of objects and rows
    that lie on the 28-pixel grid of the visual tokens. Neither is changed in the benchmark.
    """
    columns, lines = width // SLOT, height // SLOT
    if columns < 4 or lines < 4:
        raise ValueError(f"Expected GlyphVQA images of at least 224 x 224 pixels, but got {width} x {height}.")
    large = columns * lines >= 48
    free = {(x, y) for x in range(columns) for y in range(lines)}
    rows = _place_rows(rng, columns, lines, rng.randint(2, 3) if large else 1, free, on_grid)
    doubles, singles = (
        (3, 9) if crowded else (rng.randint(2, 3), rng.randint(4, 7)) if large else (2, rng.randint(1, 3))
    )
    slots = rng.sample(sorted(free), min(len(free), doubles + singles))
    boxes = []
    for number, (x, y) in enumerate(slots):
        place = _pair_boxes if number < doubles else lambda *where: [_single_box(*where)]
        boxes.extend(place(rng, x * SLOT, y * SLOT, on_grid))
    glyphs = rng.sample(GLYPHS, len(GLYPHS))
    colours, shapes = _varied(rng, COLOURS, len(boxes)), _varied(rng, SHAPES, len(boxes))
    objects = [GlyphObject(*words) for words in zip(glyphs, colours, shapes, boxes, strict=False)]
    pairs = [(objects[2 * k], objects[2 * k + 1]) for k in range(doubles)]
    for row in rows:  # glyphs of the rows are not those in shapes, so that "what holds K" has one answer
        row.glyphs = rng.sample(glyphs[len(objects) :], len(row.glyph_boxes))
    return Layout(width, height, objects, pairs, rows)


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


def _neighbour(layout: Layout, rng: Random, sides: Sequence[str]) -> Question:
    (left, right), side = rng.choice(layout.pairs), rng.choice(sides)
    item, other = (left, right) if side == "right" else (right, left)
    boxes = [left.box, right.box]
    return Question("neighbour", f"what is {side} of {item.glyph}", f"{other.glyph} {other.colour}", boxes)


def _row(layout: Layout, rng: Random) -> Question:
    row = rng.choice(layout.rows)
    return Question("row", f"read row {row.label}", " ".join(row.glyphs), [row.label_box, *row.glyph_boxes])


def _group(layout: Layout, rng: Random, attribute: str) -> tuple[str, list[GlyphObject]]:
    """A value that two to four objects share, and those objects in the order of their glyphs (digits first)."""
    values = [getattr(item, attribute) for item in layout.objects]
    value = rng.choice(sorted({value for value in values if 2 <= values.count(value) <= 4}))
    group = [item for item in layout.objects if getattr(item, attribute) == value]
    return value, sorted(group, key=lambda item: item.glyph)


def _list(layout: Layout, rng: Random) -> Question:
    colour, group = _group(layout, rng, "colour")
    glyphs = " ".join(item.glyph for item in group)
    return Question("list", f"list all in {colour}", glyphs, [item.box for item in group])


def _count(layout: Layout, rng: Random) -> Question:
    shape, group = _group(layout, rng, "shape")
    glyphs = " ".join(item.glyph for item in group)
    return Question("count", f"name and count each {shape}", f"{glyphs} {len(group)}", [item.box for item in group])


_ASK = dict(zip(FAMILIES, (_read, _name, _compare, _neighbour, _row, _list, _count), strict=True))


def ask(layout: Layout, family: str, rng: Random, sides: Sequence[str] = SIDES) -> Question:
    """A question of ``family`` about ``layout``; every layout can be asked about every family.

    ``sides`` are those that the neighbour family asks about.
    """
    if family not in _ASK:
        raise ValueError(f"Expected a GlyphVQA family out of {', '.join(FAMILIES)}, but got {family!r}.")
    return _neighbour(layout, rng, sides) if family == "neighbour" else _ASK[family](layout, rng)
