"""Pixels of visual tokens: which family has them, and that they are those of each token's cell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.policies import PixelPrune
from glimpse_lightning.testing import SIZES

PIXELS = gl.VisionPixels()
HAVE = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "internvl", "gemma3"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_pixels_or_refuses(family: str) -> None:
    backbone = gl.wrap_backbone(FAMILIES[family]())
    inputs = backbone.example_inputs(SIZES)
    if family not in HAVE:
        with pytest.raises(gl.GlimpseError, match="asks for the pixels of tokens"):
            backbone.embed(inputs, [PIXELS])
        return
    prompt = backbone.embed(inputs, [PIXELS, 0])
    assert prompt.vision[PIXELS].shape[0] == int(prompt.visual.sum()) == len(prompt.vision[0])
    assert prompt.vision[PIXELS].sum() == pytest.approx(float(inputs["pixel_values"].sum()), rel=1e-3)
    assert len(backbone.embed(backbone.example_inputs([[]]), [PIXELS]).vision[PIXELS]) == 0


def cells(rows: int, columns: int, side: int) -> Image.Image:
    """An image whose cells differ in their colours: red by row, green by column."""
    image = np.zeros((rows * side, columns * side, 3), np.uint8)
    for row in range(rows):
        for column in range(columns):
            image[row * side : (row + 1) * side, column * side : (column + 1) * side] = (10 * row, 10 * column, 128)
    return Image.fromarray(image)


def test_each_token_has_the_pixels_of_its_cell() -> None:
    """Qwen2.5-VL, whose tower sees patches in another order."""
    backbone = gl.load_backbone("glimpse-tiny")
    batch = backbone.collate([gl.Sample("0", 0, "what", images=[cells(12, 8, 28)])])
    values = backbone.embed(batch.inputs, [PIXELS]).vision[PIXELS]
    settings = backbone.processor.image_processor
    mean, std = (torch.tensor(list(getattr(settings, name))) for name in ("image_mean", "image_std"))
    row, column = torch.arange(96) // 8, torch.arange(96) % 8
    colour = torch.stack([10 * row, 10 * column, torch.full_like(row, 128)], 1) / 255
    expected = ((colour - mean) / std).repeat_interleave(2 * 14 * 14, 1)  # a patch's colour: two frames of 14 x 14
    torch.testing.assert_close(values, expected.repeat(1, 4), atol=1e-4, rtol=1e-4)


def test_llava_has_those_of_its_patches() -> None:
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    inputs = backbone.example_inputs([[(4, 4)], [(4, 4)]])
    values = backbone.embed(inputs, [PIXELS]).vision[PIXELS].unflatten(0, (2, 4, 4))
    for image, row, column in ((0, 0, 0), (0, 1, 2), (1, 3, 0)):
        patch = inputs["pixel_values"][image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.equal(values[image, row, column], patch.flatten())


def test_what_repeats_goes() -> None:
    """Of stripes two tokens wide the first of each, in the first row; of what stands below, nothing."""
    backbone = gl.load_backbone("glimpse-tiny")
    stripes = np.repeat((np.arange(8) // 2 * 60).astype(np.uint8), 28)[None].repeat(84, 0)
    image = Image.fromarray(np.stack([stripes] * 3, 2))
    model = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(-1, gl.scorers.FixedRatio(), PixelPrune())]))
    batch = backbone.collate([gl.Sample("0", 0, "what", images=[image])])
    assert model.prefill(**batch.inputs).keep[0].nonzero()[:, 0].tolist() == [0, 2, 4, 6]


def test_it_prunes_first() -> None:
    backbone = gl.load_backbone("glimpse-tiny")
    stages = [
        gl.PruneStage(-1, gl.scorers.FixedRatio(), policy) for policy in (gl.policies.KeepRatio(0.5), PixelPrune())
    ]
    batch = backbone.collate([gl.GlyphVQA("test")[0]])
    with pytest.raises(gl.GlimpseError, match="an earlier stage has dropped some"):
        gl.PrunedVLM(backbone, gl.Pruner(stages)).prefill(**batch.inputs)


def test_a_negative_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        PixelPrune(-0.1)
