from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from crops import internvl_inputs
from PIL import Image
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.backbones.regions import WHOLE
from glimpse_lightning.callbacks.token_overlay import Candidate, Choice, overlay_path, picture
from glimpse_lightning.data.sample import Box, Sample
from glimpse_lightning.engine.overlay import BOX_COLOUR, KEPT_COLOUR, UNSEEN_COLOUR, draw
from glimpse_lightning.evaluation.records import Record
from glimpse_lightning.evaluation.remarks import PAD, cropped_away

Region = tuple[float, float, float, float]


def item(grid: tuple[int, int, int], kept: list[int], region: Region = WHOLE, image: int = 0) -> dict[str, Any]:
    """An item of which the tokens ``kept``, by raster index, are left."""
    mask = torch.zeros(math.prod(grid), dtype=torch.bool)
    mask[kept] = True
    return {"sample": 0, "image": image, "grid": grid, "kept": mask, "region": region}


def drawn(size: tuple[int, int], *items: dict[str, Any], boxes: Sequence[Box] = ()) -> np.ndarray:
    return np.asarray(draw(Image.new("RGB", size, (200, 200, 200)), items, boxes)).astype(int)


def bright(pixel: np.ndarray) -> bool:
    return bool(pixel.tolist() == [200, 200, 200])


def test_kept_cells_stay_and_dropped_ones_are_dimmed() -> None:
    found = drawn((448, 448), item((1, 2, 2), [0]))
    assert bright(found[100, 100])
    assert found[100, 350].max() < 120
    assert found[350, 350].max() < 120


def test_the_border_of_the_kept_area_is_drawn_within_it() -> None:
    """Two cells side by side have one border; the picture's edge belongs to it."""
    found = drawn((448, 448), item((1, 4, 4), [0, 1, 10]))
    outline = {(0, 50), (111, 50), (50, 0), (50, 223), (224, 250), (335, 250), (250, 224), (250, 335)}
    assert all(tuple(found[place]) == KEPT_COLOUR for place in outline)
    assert bright(found[50, 111])
    assert bright(found[50, 112])
    assert tuple(found[112, 50]) != KEPT_COLOUR


def test_evidence_is_outlined_where_it_lies() -> None:
    found = drawn((448, 224), item((1, 2, 4), [*range(8)]), boxes=[(0.5, 0.25, 0.75, 0.5)])
    assert tuple(found[56, 280]) == BOX_COLOUR
    assert tuple(found[80, 224]) == BOX_COLOUR
    assert tuple(found[56, 100]) != BOX_COLOUR


def test_a_cell_of_a_clip_is_bright_where_any_frame_keeps_it() -> None:
    found = drawn((448, 448), item((2, 1, 2), [0]))
    assert bright(found[224, 100])
    assert found[224, 400].max() < 120


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((10, 20), (448, 896)), ((2000, 10), (1024, 5)), ((100, 5000), (41, 2048)), ((1, 9000), (1, 2048))],
)
def test_pictures_have_bounds(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert draw(Image.new("RGB", size), [item((1, 2, 2), [0])]).size == drawn


def test_a_cropped_image_shows_its_grid_where_the_model_looked() -> None:
    """Of 896 x 448 pixels CLIP's processor shows the square in the middle."""
    found = drawn((896, 448), item((1, 2, 2), [0], region=(0.25, 0.0, 0.75, 1.0)))
    assert tuple(found[224, 100]) == UNSEEN_COLOUR
    assert tuple(found[224, 800]) == UNSEEN_COLOUR
    assert bright(found[100, 300])
    assert 60 < found[100, 600].max() < 120


def test_a_padded_image_leaves_the_grid_of_its_padding_out() -> None:
    """896 x 448 pixels lie in the two middle rows of four."""
    found = drawn((896, 448), item((1, 4, 4), [4, 15], region=(0.0, -0.5, 1.0, 1.5)))
    assert bright(found[100, 100])
    assert found[100, 300].max() < 120
    assert found[440, 800].max() < 120


def test_tiles_and_thumbnail_share_a_picture() -> None:
    """A place is bright where a tile or the thumbnail keeps it."""
    tiles = [item((1, 2, 2), [3], (0.0, 0.0, 0.5, 1.0)), item((1, 2, 2), [], (0.5, 0.0, 1.0, 1.0))]
    found = drawn((896, 448), *tiles, item((1, 2, 2), [1]))
    assert bright(found[300, 300])
    assert bright(found[100, 700])
    assert found[100, 300].max() < 120
    assert found[300, 700].max() < 120


def test_items_of_unknown_place_are_not_drawn() -> None:
    found = drawn((448, 448), item((1, 1, 1), [0], (math.nan,) * 4), item((1, 1, 2), [1]))
    assert found[100, 100].max() < 120
    assert bright(found[100, 350])


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([item((1, 2, 2), [])], ""),
        ([item((1, 2, 2), [], (0.001, 0.0, 1.0, 1.0))], ""),
        ([item((1, 2, 2), [], (-0.5, 0.0, 1.5, 1.0))], ""),
        ([item((1, 2, 2), [], (0.0, 0.0, 0.5, 1.0)), item((1, 2, 2), [], (0.5, 0.0, 1.0, 1.0))], ""),
        ([item((1, 2, 2), [], (math.nan,) * 4)], ""),
        ([], ""),
        (
            [item((1, 2, 2), [], (0.0, 0.25, 1.0, 0.75))],
            "The model saw 50% of the image: its processor crops.",
        ),
        (
            [item((1, 2, 2), [], (0.0, 0.0, 0.5, 0.5)), item((1, 2, 2), [], (0.25, 0.25, 0.75, 0.75))],
            "The model saw 44% of the image: its processor crops.",
        ),
        (
            [item((1, 2, 2), []), item((1, 2, 2), [], (0.1, 0.0, 0.9, 1.0), image=1)],
            "The model saw 80% of one of the images: its processor crops.",
        ),
    ],
)
def test_a_picture_says_how_much_of_it_was_cropped_away(items: list[dict[str, Any]], said: str) -> None:
    assert cropped_away(items) == (f"{said} {PAD}" if said else "")


def test_pictures_hold_all_images_side_by_side() -> None:
    images = [Image.new("RGB", (448, 448)), Image.new("RGB", (448, 100))]
    sample = Sample("a/b c", 5, "which is larger", ["left"], images)
    found = picture(sample, [item((1, 2, 2), [], image=number) for number in (0, 1, 1)], {"pruned": "right " * 60}, 12)
    assert found.width == 896
    assert found.height > 448 + 3 * 20
    assert picture(Sample("x", 0, "no image", ["a"]), [], {}, 0).width > 0


def test_items_know_their_sample_and_their_image() -> None:
    """Two samples, with images of 3 and 1 crops, and of 1 and 2."""
    backbone = gl.wrap_backbone(FAMILIES["internvl"]())
    sizes = [(16, 32), (16, 16), (16, 16), (32, 16)]
    found = gl.PrunedVLM(backbone).prefill(**internvl_inputs([[3, 1], [1, 3]], sizes)).items()
    assert [(each["sample"], each["image"]) for each in found] == [(0, 0)] * 3 + [(0, 1), (1, 0)] + [(1, 1)] * 3
    assert [each["region"] for each in found] == [
        (0, 0, 0.5, 1), (0.5, 0, 1, 1), WHOLE, WHOLE, WHOLE, (0, 0, 1, 0.5), (0, 0.5, 1, 1), WHOLE,
    ]  # fmt: skip
    assert {(each["grid"], len(each["kept"])) for each in found} == {((1, 2, 2), 4)}


def test_files_are_named_after_samples_without_odd_letters(tmp_path) -> None:
    paths = {overlay_path(tmp_path, Sample(name, key, "q", [])) for name, key in (("a/b", 1), ("a_b", 2), ("ä b?", 3))}
    assert len(paths) == 3
    assert all(path.parent == tmp_path / "overlays" for path in paths)


def candidate(name: str, family: str, pruned: str) -> Candidate:
    record = Record(name, family, "q", ["a"], pruned, "a", None, None, 1, 4)
    return Candidate(Sample(name, 0, "q", ["a"]), record, [])


def chosen(most: int, *candidates: Candidate) -> list[str]:
    choice = Choice(most)
    for each in candidates:
        choice.add(each)
        assert sum(map(len, choice._kept.values())) <= 2 * most
    return [each.sample.id for each in choice.chosen()]


def test_questions_answered_otherwise_are_drawn_first() -> None:
    same, other = [candidate(f"s{n}", "x", "a") for n in range(5)], [candidate(f"o{n}", "x", "b") for n in range(2)]
    assert chosen(3, *same, *other) == ["o0", "o1", "s0"]
    assert chosen(3, *same) == ["s0", "s1", "s2"]
    assert chosen(0, *same, *other) == []


def test_families_share_the_pictures() -> None:
    many = [candidate(f"m{n}", "many", "b") for n in range(9)]
    late = [candidate(f"l{n}", "late", "b") for n in range(3)]
    assert chosen(4, *many, *late) == ["m0", "m1", "l0", "l1"]
    assert chosen(4, *many, late[0]) == ["m0", "m1", "m2", "l0"]
    assert chosen(4, *late, *many) == ["l0", "l1", "m0", "m1"]
    each = [candidate(f"f{n}", str(n), "b") for n in range(6)]
    assert len(chosen(4, *many, *each)) == 4
