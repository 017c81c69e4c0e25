"""DenseGlyphVQA: the same everywhere, full pages that can be asked about, true answers, evidence in its cells."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

import glimpse_lightning as gl
from glimpse_lightning.data.dense_glyph_vqa.page import FAMILIES, LETTERS, Page, Tile, ask, make_page
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.data.glyph_vqa.words import vocabulary
from glimpse_lightning.engine.prompt import TokenLayout

PAGES = [
    make_page(Random(f"page {number}"), side, hard) for number in range(12) for side, hard in ((16, False), (9, True))
]


def content(sample: gl.Sample) -> tuple[object, ...]:
    return sample.key, sample.question, sample.answers, sample.boxes, sample.images[0].tobytes()


def test_a_question_follows_from_its_name_alone() -> None:
    small, large = gl.DenseGlyphVQA("val", 9, 224), gl.DenseGlyphVQA("val", 90, 224)
    assert [content(small[i]) for i in range(9)] == [content(large[i]) for i in reversed(range(9))][::-1]
    options = [{"split": "test"}, {"seed": 1}, {"hard": True}, {"image_size": 252}]
    others = [gl.DenseGlyphVQA(**{"split": "val", "size": 9, "image_size": 224, **each}) for each in options]
    names = {data[i].id for data in (small, *others) for i in range(9)}
    pictures = {data[i].images[0].tobytes() for data in (small, *others) for i in range(9)}
    assert len(names) == len(pictures) == 45
    assert len({str(data.identity(3)) for data in (small, *others)}) == 5


def test_questions_about_one_page_share_it() -> None:
    data = gl.DenseGlyphVQA("train", 9, 224, questions_per_image=4)
    samples = [data[i] for i in range(9)]
    assert samples[0].images[0] is samples[3].images[0] and samples[3].images[0] is not samples[4].images[0]
    assert [sample.family for sample in samples] == [*FAMILIES, FAMILIES[0]]


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_full_and_each_question_has_one_answer(page: Page) -> None:
    assert len(page.tiles) >= 0.85 * page.side**2
    assert len({(tile.row, tile.column) for tile in page.tiles}) == len(page.tiles)
    for group in page.groups.values():
        assert [tile.place for tile in group] == [*range(len(group), 0, -1)]
        assert len({tile.glyph for tile in group} & {*LETTERS}) == len(group)
    labels = [tile for tile in page.tiles if not tile.place]
    assert 3 <= len(labels) == len(page.labels) == len({(tile.colour, tile.shape) for tile in labels})


@pytest.mark.parametrize("page", PAGES)
def test_every_tile_is_evidence_of_some_question(page: Page) -> None:
    rng, seen = Random("asked"), set[tuple[float, ...]]()
    for _ in range(3000):
        seen.update(ask(page, rng.choice(FAMILIES), rng).boxes)
    assert len(seen) >= 0.99 * len(page.tiles)


def read(page: Page, question: str) -> tuple[str, set[Tile]]:
    """Answer and evidence, read off the page again, another way."""
    words = question.split()
    at = {(tile.colour, tile.shape, tile.place): tile for tile in page.tiles}
    marks = [i for i, word in enumerate(words) if word == "label"]
    (labels,) = [[tile for i in marks for tile in page.tiles if (tile.glyph, tile.place) == (words[i + 1], 0)]]
    assert len(labels) == len(marks)
    pairs = [(tile.colour, tile.shape) for tile in labels]
    if words[0] == "describe":
        return " ".join(pairs[0]), {*labels}
    if words[0] == "what":
        pair = pairs[0] if labels else (words[3], words[4])
        tile = at[(*pair, int(words[-1]))]
        return tile.glyph, {*labels, tile}
    highest = [max(place for place in range(10) if (*pair, place) in at) for pair in pairs]
    if words[0] == "compare":
        more = "same" if highest[0] == highest[1] else labels[highest.index(max(highest))].glyph
        tops = {at[(*pair, place)] for pair, place in zip(pairs, highest, strict=True)}
        return f"{highest[0]} {highest[1]} {more}", {*labels, *tops}
    lists = [
        [at[(*pair, place)] for place in range(9, 0, -1) if (*pair, place) in at]
        for pair in pairs or [(words[2], words[3])]
    ]
    evidence = {*labels, *(tile for tiles in lists for tile in tiles)}
    return " and ".join(" ".join(f"{tile.place} {tile.glyph}" for tile in tiles) for tiles in lists), evidence


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_true_and_evidence_is_what_they_need(family: str) -> None:
    known, rng = set(vocabulary()), Random(family)
    for page in PAGES:
        for _ in range(10):
            question = ask(page, family, rng)
            answer, evidence = read(page, question.text)
            assert question.answer == answer
            assert {*question.boxes} == {tile.box for tile in evidence} and len(question.boxes) == len(evidence)
            assert {*question.text.split(), *answer.split()} <= known


def test_evidence_is_one_token_a_tile_and_up_to_thirty() -> None:
    """A box on a cell's edge would touch the next ones."""
    backbone, data = gl.load_backbone("glimpse-tiny"), gl.DenseGlyphVQA("val", 24)
    counts = []
    for index in range(24):
        batch = backbone.collate([data[index]])
        prompt = backbone.embed(batch.inputs)
        touched = evidence_mask(TokenLayout.of(prompt.visual, prompt.grid, prompt.views), batch.boxes)
        counts.append(int(touched.sum()))
        assert counts[-1] == len(batch.boxes[0][0])
    assert min(counts) == 1 and max(counts) > 20


def test_the_hard_split_has_large_groups_and_smaller_print() -> None:
    plain, hard = (
        Counter(len(group) for page in PAGES if page.side == side for group in page.groups.values()) for side in (16, 9)
    )
    assert min(plain) == 1
    assert (
        sum(size >= 4 for size in hard.elements()) >= 0.8 * hard.total()
    )  # the last group has the cells that are left
    data = [gl.DenseGlyphVQA("test", 1, 224, hard=hard)[0].images[0] for hard in (False, True)]
    assert data[0].size == data[1].size == (224, 224)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 230}, "a multiple of 28"),
        ({"image_size": 196}, "at least 224"),
        ({"families": ["row"]}, "out of tile, list, label"),
        ({"split": "hard"}, "train, val, test"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gl.DenseGlyphVQA(**options)  # type: ignore[arg-type]
