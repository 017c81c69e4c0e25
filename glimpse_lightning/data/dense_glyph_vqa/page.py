"""Pages of DenseGlyphVQA, and the questions about them, without pixels.

A page is a grid of tiles of 28 pixels, the side of a visual token. A tile has a colour, a shape, a letter and a place.
Tiles of one colour and shape are a group, whose places count from 1, with a letter each; some groups have a label, a
tile of their colour and shape in reverse with a letter that no other label has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from random import Random

from glimpse_lightning.data.glyph_vqa.layout import PixelBox, Question
from glimpse_lightning.data.glyph_vqa.words import COLOURS, GLYPHS, SHAPES

LETTERS = tuple(glyph for glyph in GLYPHS if glyph.isalpha())
"""Glyphs of tiles. A digit would be the word of a place, too."""
TILE = 28
"""Side of a tile in pixels."""
INSET = 2
"""Distance of an evidence box from its tile's edge: a box on the edge would touch the neighbours' tokens."""
FILLED = 0.9
"""Share of the cells that show a tile."""
LABELLED = 0.4
"""Chance that a group has a label."""
SIZES = (1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9)
"""Sizes of groups, by how often they occur; on the hard split, the larger half of them."""
FAMILIES = ("tile", "list", "label", "entry", "listed", "both", "three", "compare")

AND = " and "
"""Word between labels in questions, and between the lists of an answer."""

Pair = tuple[str, str]
"""Colour and shape."""


@dataclass(frozen=True)
class Tile:
    """A tile in a cell of the grid.

    Attributes:
        colour, shape, glyph: what it shows.
        place: number within its group, from 1; 0: the group's label.
        row, column: its cell.
    """

    colour: str
    shape: str
    glyph: str
    place: int
    row: int
    column: int

    @property
    def box(self) -> PixelBox:
        """The evidence box, in pixels."""
        left, top = self.column * TILE, self.row * TILE
        return (left + INSET, top + INSET, left + TILE - INSET, top + TILE - INSET)


@dataclass(frozen=True)
class Page:
    """The tiles of a page of ``side`` x ``side`` cells."""

    side: int
    tiles: tuple[Tile, ...]

    @cached_property
    def groups(self) -> dict[Pair, list[Tile]]:
        """Tiles of each group from the highest place to the first, labels left out."""
        found: dict[Pair, list[Tile]] = {}
        for tile in sorted(self.tiles, key=lambda tile: -tile.place):
            if tile.place:
                found.setdefault((tile.colour, tile.shape), []).append(tile)
        return dict(sorted(found.items()))

    @cached_property
    def labels(self) -> dict[str, Tile]:
        """Labels by their glyph."""
        return {tile.glyph: tile for tile in self.tiles if not tile.place}

    def labelled(self, label: Tile) -> list[Tile]:
        """The group of a label."""
        return self.groups[label.colour, label.shape]


def make_page(rng: Random, side: int, hard: bool = False) -> Page:
    """A random page, with at least three labels where they have room.

    Args:
        rng: generator of all random choices.
        side: cells on a side, at least 8.
        hard: whether groups are large.
    """
    cells = rng.sample([(row, column) for row in range(side) for column in range(side)], round(FILLED * side * side))
    pairs = rng.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], len(COLOURS) * len(SHAPES))
    sizes, names = SIZES[len(SIZES) // 2 :] if hard else SIZES, rng.sample(LETTERS, len(LETTERS))
    tiles: list[Tile] = []
    for number, (colour, shape) in enumerate(pairs):
        if not cells:
            break
        if names and len(cells) > 1 and (number < 3 or rng.random() < LABELLED):
            tiles.append(Tile(colour, shape, names.pop(), 0, *cells.pop()))
        letters = rng.sample(LETTERS, min(rng.choice(sizes), len(cells)))
        tiles += [Tile(colour, shape, letter, place, *cells.pop()) for place, letter in enumerate(letters, 1)]
    return Page(side, tuple(tiles))


def ask(page: Page, family: str, rng: Random, places: bool = True) -> Question:
    """A random question of ``family`` about ``page``. Groups are read out from the highest place to the first.

    Args:
        page: the page.
        family: one of the families.
        rng: generator of all random choices.
        places: whether each letter that is read out comes after its place.

    Raises:
        ValueError: if there is no such family.
    """
    if family in ("tile", "list"):
        (colour, shape), group = rng.choice([*page.groups.items()])
        if family == "list":
            return _question(family, f"list all {colour} {shape}", _read_out(group, places), group)
        tile = rng.choice(group)
        return _question(family, f"what is in {colour} {shape} {tile.place}", [tile.glyph], [tile])
    one, two = rng.sample([*page.labels.values()], 2)
    first, second = page.labelled(one), page.labelled(two)
    if family == "label":
        return _question(family, f"describe label {one.glyph}", [one.colour, one.shape], [one])
    if family == "entry":
        tile = rng.choice(first)
        return _question(family, f"what is in label {one.glyph} {tile.place}", [tile.glyph], [one, tile])
    if family == "listed":
        return _question(family, f"list all in label {one.glyph}", _read_out(first, places), [one, *first])
    if family in ("both", "three"):
        several = rng.sample([*page.labels.values()], 2 if family == "both" else min(3, len(page.labels)))
        asked = AND.join(f"label {label.glyph}" for label in several)
        lists = [page.labelled(label) for label in several]
        answer = AND.join(" ".join(_read_out(tiles, places)) for tiles in lists).split()
        evidence = [*several, *(tile for tiles in lists for tile in tiles)]
        return _question(family, f"list all in {asked}", answer, evidence)
    if family == "compare":
        more = "same" if len(first) == len(second) else (one if len(first) > len(second) else two).glyph
        asked, answer = f"label {one.glyph}{AND}label {two.glyph}", [str(len(first)), str(len(second)), more]
        return _question(family, f"compare {asked}", answer, [one, two, first[0], second[0]])
    raise ValueError(f"Expected a family out of {', '.join(FAMILIES)}, but got {family!r}.")


def _read_out(tiles: list[Tile], places: bool) -> list[str]:
    return [word for tile in tiles for word in ((str(tile.place), tile.glyph) if places else (tile.glyph,))]


def _question(family: str, text: str, answer: list[str], evidence: list[Tile]) -> Question:
    return Question(family, text, " ".join(answer), [tile.box for tile in evidence])
