from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from glimpse_lightning.callbacks.token_overlay import BOX_COLOUR, Candidate, Choice, overlay, overlay_path, picture
from glimpse_lightning.data.sample import Sample
from glimpse_lightning.evaluation.records import Record


def test_kept_cells_stay_and_dropped_ones_are_dimmed() -> None:
    image = Image.new("RGB", (448, 448), (200, 200, 200))
    kept = torch.tensor([True, False, False, False])
    drawn = np.asarray(overlay(image, (1, 2, 2), kept)).astype(int)
    assert drawn[100, 100].tolist() == [200, 200, 200]
    assert drawn[100, 350].max() < 120
    assert drawn[350, 350].max() < 120


def test_evidence_is_outlined_where_it_lies() -> None:
    image = Image.new("RGB", (448, 224))
    drawn = np.asarray(overlay(image, (1, 2, 4), torch.ones(8, dtype=torch.bool), [(0.5, 0.25, 0.75, 0.5)]))
    assert tuple(drawn[56, 280]) == BOX_COLOUR
    assert tuple(drawn[80, 224]) == BOX_COLOUR
    assert tuple(drawn[56, 100]) != BOX_COLOUR


def test_a_cell_of_a_clip_is_bright_where_any_frame_keeps_it() -> None:
    kept = torch.tensor([[True, False], [False, False]]).flatten()
    drawn = np.asarray(overlay(Image.new("RGB", (448, 448), "white"), (2, 1, 2), kept))
    assert drawn[224, 100].min() == 255
    assert drawn[224, 400].max() < 200


def test_pictures_hold_all_images_side_by_side() -> None:
    images = [Image.new("RGB", (448, 448)), Image.new("RGB", (448, 100))]
    sample = Sample("a/b c", 5, "which is larger", ["left"], images)
    items = [{"grid": (1, 2, 2), "kept": torch.zeros(4, dtype=torch.bool)} for _ in range(2)]
    drawn = picture(sample, items, {"pruned": "right " * 60})
    assert drawn.width == 896
    assert drawn.height > 448 + 3 * 20
    assert picture(Sample("x", 0, "no image", ["a"]), [], {}).width > 0


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
