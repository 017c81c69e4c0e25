"""Where each family's visual tokens lie: grids, structure tokens that stay, and states in the features' order."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import pad_rows

LLAVAS = ["llava", "llava_next", "llava_onevision"]


@pytest.mark.parametrize(
    ("family", "size", "grid"),
    [
        ("qwen2_5_vl", (3, 5), [[1, 3, 5]]),
        ("llava", (3, 5), [[1, 4, 4]]),
        ("internvl", (3, 5), [[1, 2, 2]]),
        ("idefics3", (3, 5), [[1, 2, 2]]),
        # Pixels 16 x 16 per tile: a base image and the mosaic of two or four tiles without its padding.
        ("llava_next", (4, 8), [[1, 4, 4], [1, 4, 8]]),
        ("llava_next", (3, 8), [[1, 4, 4], [1, 4, 8]]),
        ("llava_next", (2, 8), [[1, 4, 4], [1, 2, 8]]),
        ("llava_next", (8, 2), [[1, 4, 4], [1, 8, 2]]),
        # At most two tiles' worth of tokens: the larger mosaic is resampled.
        ("llava_onevision", (4, 4), [[1, 4, 4], [1, 4, 4]]),
        ("llava_onevision", (8, 8), [[1, 4, 4], [1, 5, 5]]),
    ],
)
def test_grid(family, size, grid):
    backbone = gl.wrap_backbone(FAMILIES[family]())
    prompt = backbone.embed(backbone.example_inputs([[size]]))
    assert prompt.grid.tolist() == grid
    assert int(prompt.visual.sum()) == int(prompt.grid.prod(-1).sum())


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_newlines_are_never_dropped(family):
    backbone = gl.wrap_backbone(FAMILIES[family]())
    inputs = backbone.example_inputs([[(4, 8)], [(8, 4), (4, 8)]])
    prompt = backbone.embed(inputs)
    placeholders = inputs["input_ids"] == 5
    newline = (prompt.embeds == backbone.model.model.image_newline).all(-1)
    assert torch.equal(placeholders & ~prompt.visual, newline)
    assert newline.sum() == 4 + 8 + 4  # one per row of each mosaic
    policy = gl.policies.KeepRatio(0.1)
    out = gl.PrunedVLM(backbone, gl.Pruner([gl.PruneStage(0, gl.scorers.Random(), policy)])).prefill(**inputs)
    assert out.prompt_keep[newline].all()
    assert out.keep[0].float().mean() <= 0.1


@pytest.mark.parametrize("family", LLAVAS)
def test_states_stand_in_the_order_of_the_features(family):
    """Projecting the captured states of the block that features come from gives the very embeddings."""
    backbone = gl.wrap_backbone(FAMILIES[family]())
    core, feature_layer = backbone.model.model, backbone.model.config.vision_feature_layer
    layer = backbone.facts.vision_layers + feature_layer  # hidden_states[-1] is the last block's output
    prompt = backbone.embed(backbone.example_inputs([[(4, 8)], [(4, 2), (8, 8)]]), vision_layers=(layer,))
    resampled = family == "llava_onevision"  # after projection for features, before it for states
    expected = prompt.embeds[prompt.visual][: 16 if resampled else None]
    actual = core.multi_modal_projector(prompt.vision[layer])[: len(expected)]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["internvl", "idefics3", "smolvlm"])
def test_states_are_merged_as_pixels_are_shuffled(family):
    backbone = gl.wrap_backbone(FAMILIES[family]())
    core, side = backbone.model.model, backbone.patches_per_side
    coordinates = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()[None]
    if family == "internvl":
        shuffled = core.pixel_shuffle(coordinates.view(1, side, side, 2), 0.5).flatten(0, 2)
    else:
        shuffled = core.connector.pixel_shuffle(coordinates, 2)[0]
    merged = backbone.merge_states({}, coordinates)
    assert torch.equal(merged, shuffled.view(len(merged), -1, 2).mean(1))


def test_idefics3_honours_the_mask_within_images():
    backbone = gl.wrap_backbone(FAMILIES["idefics3"]())
    inputs = backbone.example_inputs([[(2, 3)]])
    assert not inputs["pixel_attention_mask"].all()
    masked = backbone.embed(inputs).embeds
    assert not torch.allclose(masked, backbone.embed({**inputs, "pixel_attention_mask": None}).embeds)


def test_onevision_images_of_a_sample_with_several_are_one_crop_each():
    backbone = gl.wrap_backbone(FAMILIES["llava_onevision"]())
    rows = [torch.tensor([20, *[5] * 17, 21, *[5] * 17, 22]), torch.tensor([23, 24, *[5] * (16 + 4 * 5), 25])]
    inputs = pad_rows(rows, "left", 0) | {
        "pixel_values": torch.randn(3, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]] * 3),
        "batch_num_images": torch.tensor([2, 1]),
    }
    prompt = backbone.embed(inputs, vision_layers=(0,))
    assert prompt.grid.tolist() == [[1, 4, 4]] * 4
    assert prompt.visual.sum(1).tolist() == [32, 32]
    with torch.no_grad():
        expected = backbone.model(**inputs).logits[:, -1]
    torch.testing.assert_close(gl.PrunedVLM(backbone).prefill(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_class_token_among_the_features_is_kept_as_text():
    model = FAMILIES["llava"]()
    model.config.vision_feature_select_strategy = "full"
    backbone = gl.wrap_backbone(model)
    prompt = backbone.embed(pad_rows([torch.tensor([20, *[5] * 17, 21])], "left", 0) | {
        "pixel_values": torch.randn(1, 3, 16, 16)
    })  # fmt: skip
    assert prompt.grid.tolist() == [[1, 4, 4]]
    assert prompt.visual[0].tolist() == [False, False, *[True] * 16, False]


def test_too_few_placeholders_are_explained():
    backbone = gl.wrap_backbone(FAMILIES["llava"]())
    inputs = backbone.example_inputs([[(4, 4)]])
    inputs["input_ids"][0, 5] = 20
    with pytest.raises(gl.GlimpseError, match="15 placeholders and 16 tokens"):
        backbone.embed(inputs)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(1, 100), (100, 1), (1, 12), (12, 1)])
def test_images_so_thin_that_little_of_them_is_left(family, size):
    """As Hugging Face's own model, which takes them; and evidence can be placed on what there is."""
    backbone = gl.wrap_backbone(FAMILIES[family]())
    inputs = backbone.example_inputs([[size], [(4, 8)]])
    prompt = backbone.embed(inputs)
    assert int(prompt.visual.sum()) == int(prompt.grid.prod(-1).sum())
    assert prompt.views is not None
    assert len(prompt.views.image) == len(prompt.grid)
    with torch.no_grad():
        expected = backbone.model(**backbone.hf_inputs(inputs)).logits[:, -1]
    torch.testing.assert_close(gl.PrunedVLM(backbone).prefill(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    pruner = gl.Pruner([gl.PruneStage(0, gl.scorers.Oracle(), gl.policies.KeepRatio(0.3))])
    boxes = [[[(0.0, 0.0, 1.0, 1.0)]], [[(0.0, 0.0, 0.5, 0.5)]]]
    assert gl.PrunedVLM(backbone, pruner).prefill(boxes=boxes, **inputs).keep[0].any()
