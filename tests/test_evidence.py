"""Evidence boxes on the tokens of each family's tiles, mosaics, thumbnails and crops, against cases done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from crops import IMAGE, internvl_inputs
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones import regions
from glimpse_lightning.backbones.base import pad_rows
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.data.sample import Box
from glimpse_lightning.engine.prompt import TokenLayout


def touched(backbone: gl.Backbone, inputs: dict[str, Any], boxes: list[list[list[Box]]]) -> list[set[tuple[int, ...]]]:
    """(row, column) of the touched tokens of each item."""
    prompt = backbone.embed(inputs)
    tokens = TokenLayout.of(prompt.visual, prompt.grid, prompt.views)
    mask = evidence_mask(tokens, boxes)
    cells = [tokens.position[mask & (tokens.item == item)][:, 1:].tolist() for item in range(len(tokens.grid))]
    return [{tuple(cell) for cell in item} for item in cells]


def cells(rows: range, columns: range) -> set[tuple[int, ...]]:
    return {(row, column) for row in rows for column in columns}


def mosaic_inputs(backbone: Any, *sizes: tuple[int, int]) -> dict[str, Tensor]:
    """One sample with an image of each size (height, width in pixels), alone in LLaVA-OneVision's sense."""
    inputs = {"image_sizes": torch.tensor(sizes), "input_ids": torch.zeros(1, 1, dtype=torch.long)}
    tokens = [len(backbone.pack(inputs, torch.ones(sum(backbone.tiles(inputs)), 16, 1), torch.zeros(1))[i])
              for i in range(len(sizes))]  # fmt: skip
    row = torch.cat([torch.tensor([20, *[IMAGE] * count]) for count in tokens] + [torch.tensor([21])])
    pixels = torch.randn(len(sizes), max(backbone.tiles(inputs)), 3, 16, 16)
    return pad_rows([row], "left", 0) | {"image_sizes": inputs["image_sizes"], "pixel_values": pixels}


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize(
    ("size", "box", "base", "mosaic"),
    [
        # 20 x 40 pixels fill the canvas of 16 x 32 (4 x 8 tokens): columns int(0.5 * 8) to int(0.6 * 8), rows to 1.
        ((20, 40), (0.5, 0.0, 0.6, 0.4), cells(range(2), range(2, 3)), cells(range(2), range(4, 5))),
        ((20, 40), (0.0, 0.0, 1.0, 1.0), cells(range(4), range(4)), cells(range(4), range(8))),
        # 10 x 40 become 8 x 32 with 4 pixels of padding above and below, that is one row each, which the model drops.
        ((10, 40), (0.3, 0.6, 0.3, 0.7), cells(range(2, 3), range(1, 2)), cells(range(1, 2), range(2, 3))),
        # 12 x 40 become 10 x 32 below 3 pixels of padding; what is left of the mosaic are the rows of pixels 4 to 12,
        # so that it shows the image from 0.1 to 0.9 of its height.
        ((12, 40), (0.0, 0.0, 0.1, 0.05), cells(range(1), range(1)), set()),
        ((12, 40), (0.0, 0.95, 0.1, 1.0), cells(range(3, 4), range(1)), set()),
        ((12, 40), (0.0, 0.45, 0.1, 0.48), cells(range(1, 2), range(1)), cells(range(1), range(1))),
        ((12, 40), (0.0, 0.52, 0.1, 0.55), cells(range(2, 3), range(1)), cells(range(1, 2), range(1))),
        # 40 x 10: the same on its side.
        ((40, 10), (0.6, 0.3, 0.7, 0.3), cells(range(1, 2), range(2, 3)), cells(range(2, 3), range(1, 2))),
    ],
)
def test_base_image_and_mosaic_without_its_padding(family, size, box, base, mosaic):
    backbone = gl.wrap_backbone(FAMILIES[family]())
    assert touched(backbone, mosaic_inputs(backbone, size), [[[box]]]) == [base, mosaic]


def test_newline_tokens_hold_no_region():
    """Of 12 x 16 + 2 newlines a box over everything touches every token but the newlines."""
    backbone = gl.wrap_backbone(FAMILIES["llava_next"]())
    inputs = mosaic_inputs(backbone, (10, 40))
    prompt = backbone.embed(inputs)
    assert int((inputs["input_ids"] == IMAGE).sum()) == 16 + 2 * 8 + 2
    tokens = TokenLayout.of(prompt.visual, prompt.grid, prompt.views)
    assert evidence_mask(tokens, [[[(0.0, 0.0, 1.0, 1.0)]]]).tolist() == [True] * 32
    assert prompt.visual.sum() == 32


def test_a_resampled_mosaic_shows_the_same_region():
    """32 x 32 pixels give 8 x 8 tokens, two tiles' worth too many: 5 x 5 are left of them."""
    backbone = gl.wrap_backbone(FAMILIES["llava_onevision"]())
    base, mosaic = touched(backbone, mosaic_inputs(backbone, (32, 32)), [[[(0.5, 0.5, 0.59, 0.65)]]])
    assert base == {(2, 2)}
    assert mosaic == cells(range(2, 4), range(2, 3))


def test_one_of_several_images_is_padded_to_a_square():
    """8 x 16 pixels lie in the two middle rows of four."""
    backbone = gl.wrap_backbone(FAMILIES["llava_onevision"]())
    row = torch.tensor([20, *[IMAGE] * 17, 21, *[IMAGE] * 17, 22])
    inputs = pad_rows([row], "left", 0) | {
        "pixel_values": torch.randn(2, 1, 3, 16, 16),
        "image_sizes": torch.tensor([[8, 16], [16, 16]]),
        "batch_num_images": torch.tensor([2]),
    }
    first, second = touched(backbone, inputs, [[[(0.0, 0.0, 1.0, 0.4)], [(0.0, 0.0, 0.1, 0.1)]]])
    assert first == cells(range(1, 2), range(4))
    assert second == {(0, 0)}
    assert touched(backbone, inputs, [[[(0.0, 0.0, 1.0, 1.0)], []]]) == [cells(range(1, 3), range(4)), set()]


def test_internvl_tiles_and_thumbnail():
    """Two tiles side by side: the box lies in the second one, and in the thumbnail's right half."""
    backbone = gl.wrap_backbone(FAMILIES["internvl"]())
    inputs = internvl_inputs([[3], [1, 7]], [(20, 40), (9, 9), (100, 160)])
    whole: Box = (0.0, 0.0, 1.0, 1.0)
    items = touched(backbone, inputs, [[[(0.6, 0.6, 0.7, 0.9)]], [[], [(0.7, 0.1, 0.9, 0.3), whole]]])
    assert items[:4] == [set(), {(1, 0)}, {(1, 1)}, set()]
    assert all(item == cells(range(2), range(2)) for item in items[4:])
    # 100 x 160 in six tiles: two rows of three. Columns 2.1 to 2.7 of three tiles are the third one's halves.
    items = touched(backbone, inputs, [None, [[], [(0.7, 0.1, 0.9, 0.3)]]])
    assert items[4:] == [set(), set(), cells(range(2), range(2)), set(), set(), set(), {(0, 1)}]


def test_tiles_of_an_image_of_unknown_size_are_refused_only_where_boxes_want_them():
    backbone = gl.wrap_backbone(FAMILIES["internvl"]())
    inputs = internvl_inputs([[3]], [(20, 40)])
    del inputs["image_sizes"]
    assert touched(backbone, inputs, [None]) == [set()] * 3
    assert touched(backbone, inputs, [[[]]]) == [set()] * 3
    with pytest.raises(gl.GlimpseError, match="`image_sizes`"):
        touched(backbone, inputs, [[[(0.0, 0.0, 1.0, 1.0)]]])


def test_more_images_than_lists_of_boxes():
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    with pytest.raises(gl.GlimpseError, match=r"each of the 2 images of a sample, but got them for 1"):
        touched(backbone, backbone.example_inputs([[(2, 2), (2, 2)]]), [[[]]])


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "internvl"])
def test_an_oracle_prunes_tiled_images(family):
    """Boxes reach the scorer: what it keeps is what they touch, in the base image or thumbnail and in the tiles."""
    backbone = gl.wrap_backbone(FAMILIES[family]())
    inputs = internvl_inputs([[3]], [(20, 40)]) if family == "internvl" else mosaic_inputs(backbone, (20, 40))
    boxes = [[[(0.1, 0.1, 0.2, 0.2)]]]
    out = gl.PrunedVLM(backbone).prefill(**inputs)
    evidence = evidence_mask(out.tokens, boxes)
    stage = gl.PruneStage(1, gl.scorers.Oracle(), gl.policies.TopK(int(evidence.sum())))
    pruned = gl.PrunedVLM(backbone, gl.Pruner([stage])).prefill(**inputs, boxes=boxes)
    assert torch.equal(pruned.keep[0], evidence)
    assert 0 < evidence.sum() < len(evidence) / 2


class Settings:
    """Of an image processor."""

    do_pad = False
    do_resize = True
    size = {"shortest_edge": 336}
    do_center_crop = True
    crop_size = {"height": 336, "width": 336}


def test_regions():
    assert regions.resized_and_cropped(336, 672, Settings()) == (0.25, 0.0, 0.75, 1.0)
    assert regions.resized_and_cropped(400, 100, Settings()) == (0.0, 0.375, 1.0, 0.625)
    padded, squeezed, plain = Settings(), Settings(), Settings()
    padded.do_pad, squeezed.size, plain.do_center_crop = True, {"height": 336, "width": 336}, False
    assert regions.resized_and_cropped(100, 400, padded) == (0.0, -1.5, 1.0, 2.5)
    assert regions.resized_and_cropped(100, 400, squeezed) == regions.WHOLE
    assert regions.resized_and_cropped(100, 400, plain) == regions.WHOLE
    assert regions.fitted(12, 40, 16, 32) == (0.0, -0.3, 1.0, 1.3)
    assert regions.nearest_tiling(100, 160, 6) == (2, 3)
    assert regions.nearest_tiling(160, 100, 6) == (3, 2)
    assert regions.nearest_tiling(100, 900, 7) == (1, 7)
