"""Videos, alone and mixed with images: items in prompt order with ``t > 1`` grids, pruned like images."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import pad_rows
from glimpse_lightning.testing import recompute_logits

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
IMAGE, VIDEO = 5, 6


def qwen_inputs(backbone: gl.Backbone, first_sample: int = 0, samples: int = 2) -> dict[str, Tensor]:
    """Samples: [image 2x3, video 2x(2x2), image 1x2] and [video 3x(1x2)]; Qwen3-VL has text between frames."""
    stamped = "qwen3" in backbone.facts.model_type
    items = [[("image", 1, 2, 3), ("video", 2, 2, 2), ("image", 1, 1, 2)], [("video", 3, 1, 2)]]
    vision = backbone.model.config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    rows, pixels, grids = [], {"image": [], "video": []}, {"image": [], "video": []}
    for index in range(first_sample, first_sample + samples):
        generator = torch.Generator().manual_seed(index)
        row = [20 + index]
        for kind, t, h, w in items[index]:
            token = IMAGE if kind == "image" else VIDEO
            frames = t if stamped else 1
            for frame in range(frames):
                row += [30 + frame, 7, *[token] * (t // frames * h * w), 8]
            pixels[kind].append(torch.randn(t * h * w * 4, values, generator=generator))
            grids[kind].append([t, 2 * h, 2 * w])
        rows.append(torch.tensor([*row, 40 + index, 41, 42]))
    inputs = pad_rows(rows, "left", 0)
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels[kind]:
            inputs |= {name: torch.cat(pixels[kind]), f"{kind}_grid_thw": torch.tensor(grids[kind])}
    return inputs


def onevision_inputs() -> dict[str, Tensor]:
    """Two samples with one video of three frames each; 4 x 4 patches pooled to 2 x 2, one newline behind."""
    rows = [torch.tensor([20, *[VIDEO] * 13, 40, 41]), torch.tensor([20, 21, 22, *[VIDEO] * 13, 41])]
    generator = torch.Generator().manual_seed(0)
    return {**pad_rows(rows, "left", 0), "pixel_values_videos": torch.randn(2, 3, 3, 16, 16, generator=generator)}


def video_inputs(backbone: gl.Backbone) -> dict[str, Tensor]:
    return onevision_inputs() if "onevision" in backbone.facts.model_type else qwen_inputs(backbone)


def attention_rank() -> gl.Pruner:
    stage = gl.PruneStage(1, gl.scorers.AttentionRank(), gl.policies.KeepRatio(0.4))
    return gl.Pruner([stage])


@pytest.fixture(params=[*QWEN, "llava_onevision"])
def backbone(request):
    return gl.wrap_backbone(FAMILIES[request.param]())


def test_plain_equals_hugging_face(backbone):
    inputs = video_inputs(backbone)
    with torch.no_grad():
        expected = backbone.model(**backbone.hf_inputs(inputs)).logits[:, -1]
    torch.testing.assert_close(gl.PrunedVLM(backbone).prefill(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    ids = gl.PrunedVLM(backbone).generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    hf = backbone.model.generate(**backbone.hf_inputs(inputs), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert torch.equal(ids, hf[:, inputs["input_ids"].shape[1] :])


def test_pruned_decoding_equals_recomputation(backbone):
    inputs, pruner = video_inputs(backbone), attention_rank()
    model = gl.PrunedVLM(backbone, pruner)
    out = model.prefill(**inputs)
    assert 0 < out.keep[0].float().mean() < 0.5
    generated = model.generate(
        prefill=out, max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True
    )
    expected = recompute_logits(backbone, pruner, inputs, out, generated.sequences[:, :-1])
    torch.testing.assert_close(torch.stack(list(generated.logits), 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", QWEN)
def test_items_in_prompt_order(family):
    backbone = gl.wrap_backbone(FAMILIES[family]())
    prompt = backbone.embed(qwen_inputs(backbone), vision_layers=(0,))
    assert prompt.grid.tolist() == [[1, 2, 3], [2, 2, 2], [1, 1, 2], [3, 1, 2]]
    layout = gl.PrunedVLM(backbone).prefill(**qwen_inputs(backbone)).tokens
    assert layout.item_sample.tolist() == [0, 0, 0, 1]
    assert layout.position[layout.item == 1][:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert layout.position[layout.item == 3].tolist() == [[t, 0, w] for t in range(3) for w in range(2)]
    for sample, rows in ((0, slice(0, 16)), (1, slice(16, 22))):  # states stay with their tokens
        alone = backbone.embed(qwen_inputs(backbone, sample, 1), vision_layers=(0,))
        torch.testing.assert_close(prompt.vision[0][rows], alone.vision[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(prompt.embeds[prompt.visual][rows], alone.embeds[alone.visual], atol=1e-5, rtol=1e-5)


def test_deepstack_features_follow_mixed_items():
    backbone = gl.wrap_backbone(FAMILIES["qwen3_vl"]())
    prompt = backbone.embed(qwen_inputs(backbone))
    assert list(prompt.layer_features) == [0, 1]
    alone = backbone.embed(qwen_inputs(backbone, 0, 1))
    torch.testing.assert_close(prompt.layer_features[1][:16], alone.layer_features[1], atol=1e-5, rtol=1e-5)


def test_onevision_video_is_one_item_without_its_newline():
    backbone = gl.wrap_backbone(FAMILIES["llava_onevision"]())
    prompt = backbone.embed(onevision_inputs(), vision_layers=(1,))
    assert prompt.grid.tolist() == [[3, 2, 2], [3, 2, 2]]
    assert prompt.visual.sum(1).tolist() == [12, 12]
    assert prompt.vision[1].shape == (24, 32)


def onevision_mixed(padding_side: str = "left") -> dict[str, Tensor]:
    """Videos beside images and text: [image, video], [video], [], [video, image]."""
    image = gl.wrap_backbone(FAMILIES["llava_onevision"]()).example_inputs([[(4, 4)]])
    picture, video = [IMAGE] * int((image["input_ids"] == IMAGE).sum()), [VIDEO] * 13
    rows = [[20, *picture, 30, *video, 40], [21, *video, 41, 42], [22, 23, 24], [25, *video, 31, *picture, 44]]
    inputs = pad_rows([torch.tensor(row) for row in rows], padding_side, 0)
    pixels = torch.randn(3, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return inputs | {
        "pixel_values": image["pixel_values"].repeat(2, 1, 1, 1, 1),
        "image_sizes": image["image_sizes"].repeat(2, 1),
        "pixel_values_videos": pixels,
        "image_sizes_videos": torch.tensor([[[16, 16]] * 3] * 3),
    }


def test_onevision_videos_beside_images_and_text():
    backbone = gl.wrap_backbone(FAMILIES["llava_onevision"]())
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    left, right = onevision_mixed(), onevision_mixed("right")
    hf = backbone.model.generate(**backbone.hf_inputs(left), **options)
    assert torch.equal(gl.PrunedVLM(backbone).generate(**left, **options), hf[:, left["input_ids"].shape[1] :])
    model = gl.PrunedVLM(backbone, attention_rank())
    out = model.prefill(**left)
    assert out.tokens.item_sample.tolist() == [0, 0, 0, 1, 3, 3, 3]  # an image is two items: the whole, and its tiles
    assert [len(frames) for frames in out.frame_retention()] == [1, 1, 3, 3, 3, 1, 1]
    assert torch.equal(model.generate(**left, **options), model.generate(**right, **options))


@pytest.mark.parametrize("family", ["internvl", "smolvlm", "idefics3"])
def test_frames_that_are_fed_as_images(family):
    """A video of three frames beside text and an image: one item, hence one retention, for each frame."""
    backbone = gl.wrap_backbone(FAMILIES[family]())
    sizes = [[(2, 2)] * 3, [], [(2, 2)]]
    out = gl.PrunedVLM(backbone, attention_rank()).prefill(**backbone.example_inputs(sizes))
    assert out.tokens.item_sample.tolist() == [0, 0, 0, 2]
    frames = out.frame_retention()
    for item, shares in enumerate(frames):
        assert shares.tolist() == [pytest.approx(out.keep[0][out.tokens.item == item].float().mean().item())]
    assert round(sum(4 * float(shares) for shares in frames)) == int(out.kept().sum()) == 4 + 1  # of 12, and of 4


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_videos_can_be_kept_as_the_reference_does(family):
    model = FAMILIES[family]()
    backbone = gl.wrap_backbone(model, prune_video=False)
    inputs = qwen_inputs(backbone)
    out = gl.PrunedVLM(backbone, attention_rank()).prefill(**inputs)
    assert out.tokens.grid.tolist() == [[1, 2, 3], [1, 1, 2]]
    assert out.prompt_keep[inputs["input_ids"] == VIDEO].all()
    assert not out.prompt_keep[inputs["input_ids"] == IMAGE].all()


def test_qwen3_vl_says_that_it_cannot_keep_videos():
    backbone = gl.wrap_backbone(FAMILIES["qwen3_vl"](), prune_video=False)
    with pytest.raises(gl.GlimpseError, match="pruner=None"):
        backbone.embed(qwen_inputs(backbone))


def test_retention_of_each_frame(backbone):
    out = gl.PrunedVLM(backbone, attention_rank()).prefill(**video_inputs(backbone))
    frames = out.frame_retention()
    assert [len(shares) for shares in frames] == out.tokens.grid[:, 0].tolist()
    for item, shares in enumerate(frames):
        for frame, share in enumerate(shares.tolist()):
            here = (out.tokens.item == item) & (out.tokens.position[:, 0] == frame)
            assert share == pytest.approx(out.keep[0][here].float().mean().item())


def test_retention_of_frames_after_several_stages():
    """Tokens count only where every stage kept them; an unpruned prompt keeps all of every frame."""
    backbone = gl.wrap_backbone(FAMILIES["qwen2_5_vl"]())
    stages = [
        gl.PruneStage(layer, gl.scorers.FixedRatio(), gl.policies.KeepRatio(r)) for layer, r in ((0, 0.5), (1, 0.2))
    ]
    out = gl.PrunedVLM(backbone, gl.Pruner(stages)).prefill(**qwen_inputs(backbone))
    kept = sum(
        float((s * h * w).sum()) for s, (_, h, w) in zip(out.frame_retention(), out.tokens.grid.tolist(), strict=True)
    )
    assert round(kept) == int(out.kept().sum()) == int(out.keep[-1].sum())
    plain = gl.PrunedVLM(backbone).prefill(**qwen_inputs(backbone))
    assert all((shares == 1).all() for shares in plain.frame_retention())
