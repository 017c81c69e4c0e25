from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from glimpse_lightning.callbacks.token_overlay import BOX_COLOUR, overlay, overlay_path, picture
from glimpse_lightning.data.sample import Sample


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
