"""GlyphVQA: the same everywhere, disjoint splits, true answers, evidence where it says."""

from __future__ import annotations

import hashlib
from collections import Counter
from random import Random

import numpy as np
import pytest

from glimpse_lightning.data.glyph_vqa import GlyphVQA
from glimpse_lightning.data.glyph_vqa.layout import FAMILIES, ask, make_layout


def _digest(sample) -> str:
    pixels = sample.images[0].tobytes()
    return hashlib.sha256(pixels + f"{sample.question}{sample.answers}{sample.boxes}".encode()).hexdigest()


def test_same_index_same_sample_whatever_the_size():
    small, large = GlyphVQA("val", size=4), GlyphVQA("val", size=400)
    assert [_digest(small[i]) for i in range(4)] == [_digest(large[i]) for i in range(4)]
    assert [small[i].key for i in range(4)] == [large[i].key for i in range(4)]


def test_questions_about_one_image_share_it():
    data = GlyphVQA("train", size=9, image_size=224, questions_per_image=4)
    samples = [data[i] for i in range(9)]
    assert samples[0].images[0] is samples[3].images[0] and samples[3].images[0] is not samples[4].images[0]
    assert len({(sample.question, sample.family) for sample in samples[:4]}) == 4
    assert len({sample.key for sample in samples}) == 9
    again = GlyphVQA("train", size=9, image_size=224, questions_per_image=4)[2]
    assert again.question == samples[2].question
    assert again.images[0].tobytes() == samples[2].images[0].tobytes()


def test_another_split_or_seed_gives_other_samples():
    datasets = [GlyphVQA(split, size=7, seed=seed) for split in ("train", "val", "test") for seed in (0, 1)]
    samples = [dataset[i] for dataset in datasets for i in range(7)]
    for value in (_digest, lambda sample: sample.id, lambda sample: sample.key):
        assert len({value(sample) for sample in samples}) == len(samples)
    assert all(0 <= sample.key < 2**63 for sample in samples)


def test_families_are_equally_frequent_and_selectable():
    dataset = GlyphVQA("test", size=70, image_size=224)
    counts = Counter(dataset[i].family for i in range(70))
    assert counts == dict.fromkeys(FAMILIES, 10)
    assert {GlyphVQA("test", 4, families=["row", "list"])[i].family for i in range(4)} == {"row", "list"}


@pytest.mark.parametrize("size", [224, 336, 448, 560])
def test_image_size_and_boxes(size):
    dataset = GlyphVQA("train", size=14, image_size=size)
    for sample in (dataset[i] for i in range(14)):
        assert sample.images[0].size == (size, size) and sample.images[0].mode == "RGB"
        assert len(sample.boxes) == 1 and sample.boxes[0]
        for x1, y1, x2, y2 in sample.boxes[0]:
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1


def test_evidence_is_small_and_differs_between_families():
    dataset = GlyphVQA("test", size=140)
    area = {family: [] for family in FAMILIES}
    for sample in (dataset[i] for i in range(140)):
        assert sample.answers[0] and len(set(sample.answers)) == len(sample.answers)
        area[sample.family].append(sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in sample.boxes[0]) * 256)
    means = {family: float(np.mean(values)) for family, values in area.items()}
    assert max(means.values()) < 8 and min(means.values()) < 2
    assert means["list"] > 1.5 * means["read"]


@pytest.mark.parametrize("size", [224, 448])
def test_answers_are_true_and_unambiguous(size):
    rng = Random(1)
    for _ in range(60):
        layout = make_layout(rng, size, size)
        glyphs = [item.glyph for item in layout.objects] + [glyph for row in layout.rows for glyph in row.glyphs]
        assert len(set(glyphs)) == len(glyphs)
        assert all(3 <= len(row.glyphs) <= 4 for row in layout.rows)
        assert len({row.label for row in layout.rows}) == len(layout.rows) >= 1
        by_glyph = {item.glyph: item for item in layout.objects}
        name = ask(layout, "name", rng)
        item = by_glyph[name.text.split()[-1]]
        assert name.answer == f"{item.colour} {item.shape}"
        read = ask(layout, "read", rng)
        key, answer = read.text.split()[-1], read.answer.split()
        assert [i.glyph for i in layout.objects if key in (i.colour, i.shape)] == [answer[1]]
        for family, attribute in (("list", "glyph"), ("count", "shape")):
            question = ask(layout, family, rng)
            colour, words = question.text.split()[-1], question.answer.split()
            group = sorted((i for i in layout.objects if i.colour == colour), key=lambda i: -i.number)
            assert [i.number for i in group] == list(range(len(question.boxes), 0, -1))
            assert words == [getattr(i, attribute) for i in group] + [str(len(group))] * (family == "count")
        for family in ("row", "neighbour"):
            question = ask(layout, family, rng)
            key, words = question.text.split()[-1], question.answer.split()
            (row,) = [row for row in layout.rows if key == row.label or key in row.glyphs]
            assert words == [row.label] * (family == "neighbour") + row.glyphs
        both = ask(layout, "compare", rng).answer.split()
        assert both[2] == ("same" if both[0] == both[1] else "different")


def test_half_of_the_objects_lie_off_the_grid_and_none_overlap():
    rng, off, total = Random(2), 0, 0
    for _ in range(100):
        layout = make_layout(rng)
        boxes = [item.box for item in layout.objects]
        for a in range(len(boxes)):
            for b in range(a):
                wide = min(boxes[a][2], boxes[b][2]) - max(boxes[a][0], boxes[b][0])
                high = min(boxes[a][3], boxes[b][3]) - max(boxes[a][1], boxes[b][1])
                assert wide <= 3 or high <= 3
        off += sum(box[0] % 28 != 0 or box[1] % 28 != 0 for box in boxes)
        total += len(boxes)
    assert 0.4 < off / total < 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split"),
        ({"size": 0}, "size"),
        ({"image_size": 100}, "image_size"),
        ({"families": ["colour"]}, "families"),
        ({"families": []}, "families"),
        ({"questions_per_image": 0}, "questions_per_image"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=f"`{message}`"):
        GlyphVQA(**arguments)
