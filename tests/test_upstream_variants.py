"""Every variant of the reference's pruners, loaded from its own files, against a second implementation."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from plain_reference import PlainOutput, new_modules, plain_forward, vision_window
from torch import Tensor

import glimpse_lightning as gl
from glimpse_lightning.pruner.upstream_export import upstream_files
from glimpse_lightning.runtime.errors import GlimpseError

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}
SIZES = [[(5, 6)], [(3, 4), (6, 2)], [(2, 3), (5, 5), (4, 3)]]  # ragged; 1, 2 and 3 images of (height, width)
COMMON: dict[str, Any] = {
    "attn_fuse_type": "AttnFuserV1", "attn_fuse_size": 16, "visual_cond_size": 16, "attn_fuse_num_heads": 4,
    "attn_fuse_hidden_act": "silu", "ori_attn_supervision": False, "deep_supervision": False, "le_layers": [0, 1, 2, 3],
    "le_length": 1, "le_dropout_prob": 0.1, "reduce_threshold": 0.5, "use_ref_masks": False, "use_zero_masks": False,
    "reduce_layer": 2, "selected_layers": [2], "selected_visual_layers": [2, 1], "anchor_positions": [],
    "min_remain_num": 1, "max_remain_ratio": None, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_size": 48, "intermediate_size": 64, "rms_norm_eps": 1e-6,
}  # fmt: skip
QWEN = {
    "model_type": "qwen2_5_vl_gp", "use_attention_logits": True, "attn_fuse_global": True, "le_norm_type": "rmsnorm",
    "vision_config": {"depth": 3, "window_size": 56, "spatial_merge_size": 2, "patch_size": 14},
}  # fmt: skip
LLAVA = {"model_type": "llava_llama_gp", "use_attention_logits": False}
FAMILIES = {"qwen": QWEN, "llava": LLAVA}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "log_softmax": {"use_attention_logits": False},
    "raw_logits": {"use_attention_logits": True},
    "windows": {"attn_fuse_global": False},
    "deep_supervision": {"deep_supervision": True},
    "original_attention": {"ori_attn_supervision": True},
    "several_layers": {"selected_layers": [2, 0, 1]},
    "several_glimpses": {"le_length": 3},
    "several_glimpses_log_softmax": {"le_length": 2, "use_attention_logits": False, "selected_layers": [1, 2]},
    "layernorm": {"le_norm_type": "layernorm"},
    "some_layers": {"le_layers": [0, 2]},
    "unordered_layers": {"le_layers": [1, 0, 3]},
    "layer_below": {"selected_layers": [1]},
    "at_the_last_layer": {"reduce_layer": 3, "selected_layers": [3]},
    "beyond_the_last_layer": {"reduce_layer": 1000, "selected_layers": [3, 1]},
    "after_the_first_layer": {"reduce_layer": 0, "selected_layers": [0]},
    "one_vision_layer": {"selected_visual_layers": [1]},
    "cap": {"reduce_threshold": 0.1, "max_remain_ratio": 0.111},
    "cap_then_floor": {"reduce_threshold": 0.1, "max_remain_ratio": 0.05, "min_remain_num": 5},
    "floor": {"reduce_threshold": 0.999, "min_remain_num": 7},
    "nothing": {"reduce_threshold": 1.0, "min_remain_num": 0},
    "no_floor": {"min_remain_num": 0},
    "floor_unset": {"min_remain_num": None, "anchor_positions": None},
    "activation": {"attn_fuse_hidden_act": "gelu"},
    "no_glimpse": {"le_layers": []},
    "glimpse_of_length_0": {"le_length": 0},
    "vision_layers_from_the_back": {"selected_visual_layers": [-1, -3]},
}
NOT_LLAVA = ("windows", "layernorm", "no_glimpse", "glimpse_of_length_0")
NOT_QWEN = ("vision_layers_from_the_back",)
CASES = [(f, v) for f in FAMILIES for v in VARIANTS if v not in (NOT_QWEN if f == "qwen" else NOT_LLAVA)]


@cache
def backbone(family: str) -> gl.Backbone:
    model = tiny_models.qwen2_5_vl() if family == "qwen" else tiny_models.llava()
    model.generation_config.eos_token_id = None
    return gl.wrap_backbone(model)


def pruner_files(folder: Path, family: str, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a pruner as the reference does; returns its configuration and weights."""
    config = COMMON | FAMILIES[family] | fields
    saved = new_modules(config, backbone(family).facts.vision_hidden_size)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(saved, folder / "new_modules_gp.pt")
    return config, saved


def samples(family: str, sizes: list[list[tuple[int, int]]] = SIZES) -> list[dict[str, Tensor]]:
    return [backbone(family).example_inputs([size], first_sample=i) for i, size in enumerate(sizes)]


def check_alone(expected: PlainOutput, out: Any) -> None:
    torch.testing.assert_close(out.scores[0], expected.rows[-1], **CLOSE)
    assert torch.equal(out.keep[0], expected.keep)
    assert torch.equal(out.prompt_keep[0], expected.columns)
    torch.testing.assert_close(out.logits[0], expected.logits, **CLOSE)
    assert {layer.keys.shape[2] for layer in out.cache.layers} == {int(expected.columns.sum())}


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_variant(tmp_path: Path, family: str, variant: str) -> None:
    """Each sample alone is the plain implementation's; in a ragged batch, padded left or right, it is the same."""
    config, saved = pruner_files(tmp_path, family, **VARIANTS[variant])
    model = gl.PrunedVLM(backbone(family), gl.load_pruner(tmp_path))
    alone = [plain_forward(backbone(family), config, saved, inputs) for inputs in samples(family)]
    for expected, inputs in zip(alone, samples(family), strict=True):
        check_alone(expected, model.prefill(**inputs))
    for side in ("left", "right") if variant == "published" else ("left",):
        out = model.prefill(**backbone(family).example_inputs(SIZES, padding_side=side))
        torch.testing.assert_close(out.scores[0], torch.cat([one.rows[-1] for one in alone]), **CLOSE)
        assert torch.equal(out.keep[0], torch.cat([one.keep for one in alone]))
        torch.testing.assert_close(out.logits, torch.stack([one.logits for one in alone]), **CLOSE)
    if variant == "nothing":
        assert not out.keep[0].any()
    if variant == "deep_supervision":
        assert len(alone[0].rows) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_in_a_batch_is_that_of_single_samples(tmp_path: Path, family: str) -> None:
    pruner_files(tmp_path, family)
    model = gl.PrunedVLM(backbone(family), gl.load_pruner(tmp_path))
    options: dict[str, Any] = {"max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(**backbone(family).example_inputs(SIZES), **options)
    for row, inputs in enumerate(samples(family)):
        alone = model.generate(**inputs, **options)
        assert torch.equal(together.sequences[row], alone.sequences[0])
        for batched, single in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(batched[row], single[0], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("anchors", [["tl"], ["tr", "bl"], ["tl", "tr", "bl", "br"]])
def test_anchors(tmp_path: Path, family: str, anchors: list[str]) -> None:
    config, saved = pruner_files(tmp_path, family, anchor_positions=anchors, max_remain_ratio=0.1)
    model = gl.PrunedVLM(backbone(family), gl.load_pruner(tmp_path))
    single = [[(5, 6)], [(3, 4)]]
    for inputs in samples(family, single):
        check_alone(plain_forward(backbone(family), config, saved, inputs), model.prefill(**inputs))
    with pytest.raises(GlimpseError, match="one image per sample"):
        model.prefill(**backbone(family).example_inputs(SIZES))


def test_windows_are_runs_of_their_own(tmp_path: Path) -> None:
    """Windows of 2 x 2 tokens on a 5 x 6 grid, cut at the border: each scores as if there were no others."""
    config, _ = pruner_files(tmp_path, "qwen", attn_fuse_global=False)
    side = vision_window(config)
    assert side == 2
    scorer = gl.load_pruner(tmp_path).stages[0].scorer
    model = gl.PrunedVLM(backbone("qwen"), gl.load_pruner(tmp_path))
    seen = []
    model.pruner.stages[0].scorer.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    scores = model.prefill(**samples("qwen")[0]).scores[0]
    (tokens,) = seen
    row, column = tokens.position[:, 1], tokens.position[:, 2]
    for top in range(0, 5, side):
        for left in range(0, 6, side):
            inside = (row // side == top // side) & (column // side == left // side)
            torch.testing.assert_close(scorer(tokens.subset(inside)), scores[inside], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_masks(tmp_path: Path, family: str) -> None:
    """No glimpse, no predictor: what the masks say is kept, and the rest is as if the predictor had said it."""
    pruner_files(tmp_path, family, use_ref_masks=True)
    model = gl.PrunedVLM(backbone(family), gl.load_pruner(tmp_path))
    assert model.vision_layers == ()
    batch = backbone(family).example_inputs(SIZES)
    grid = model.prefill(**batch, state={"reference_masks": [torch.ones(count(family, batch))]}).tokens.grid
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(*item[1:].tolist(), generator=generator) > 0.6 for item in grid]
    out = model.prefill(**batch, state={"reference_masks": masks})
    assert torch.equal(out.keep[0], torch.cat([mask.flatten() for mask in masks]))
    soft = model.prefill(**batch, state={"reference_masks": [0.3 + 0.4 * mask for mask in masks]})
    torch.testing.assert_close(soft.logits, out.logits)
    told = gl.PrunedVLM(backbone(family), gl.Pruner([gl.PruneStage(2, Told(out.keep[0]), gl.policies.Threshold())]))
    torch.testing.assert_close(told.prefill(**batch).logits, out.logits, **CLOSE)
    with pytest.raises(GlimpseError, match="`state` or `copies`"):
        model.prefill(**batch, state={"reference_masks": masks}, copies=2)
    answers = model.generate(**batch, state={"reference_masks": masks}, max_new_tokens=4)
    assert torch.equal(answers, told.generate(**batch, max_new_tokens=4))
    with pytest.raises(GlimpseError, match=r"Expected `reference_masks` with a value for each of the .* but got none"):
        model.prefill(**batch)


@pytest.mark.parametrize(("per", "kept"), [("sample", [4, 0]), ("item", [1, 3])])
def test_given_masks_are_capped_image_by_image(tmp_path: Path, per: str, kept: list[int]) -> None:
    """As in the reference, whose given masks are a list per image; predicted ones share ``int(0.3 * 16)``."""
    pruner_files(tmp_path, "qwen", use_ref_masks=True, max_remain_ratio=0.3)
    model = gl.PrunedVLM(backbone("qwen"), gl.load_pruner(tmp_path))
    policy = model.pruner.stages[0].policy
    assert policy.per == "item"
    policy.per = per
    batch = backbone("qwen").example_inputs([[(2, 3), (5, 2)]])
    masks = [torch.full((2, 3), 0.9), torch.full((5, 2), 0.8)]
    out = model.prefill(**batch, state={"reference_masks": masks})
    assert [int(out.keep[0][out.tokens.item == item].sum()) for item in (0, 1)] == kept


def test_given_masks_take_anchors_with_several_images(tmp_path: Path) -> None:
    pruner_files(tmp_path, "qwen", use_ref_masks=True, anchor_positions=["tr"], min_remain_num=0)
    model = gl.PrunedVLM(backbone("qwen"), gl.load_pruner(tmp_path))
    batch = backbone("qwen").example_inputs([[(2, 3), (5, 2)]])
    out = model.prefill(**batch, state={"reference_masks": [torch.zeros(2, 3), torch.zeros(5, 2)]})
    assert out.keep[0].nonzero()[:, 0].tolist() == [2, 6 + 1]


def count(family: str, batch: dict[str, Tensor]) -> int:
    return int((batch["input_ids"] == backbone(family).model.config.image_token_id).sum())


class Told(gl.scorers.Scorer):
    """Says what it was told."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, tokens: gl.VisualTokens) -> Tensor:
        return self.keep.float() - 0.5


@pytest.mark.parametrize(("least", "kept"), [(0, 0), (1, 6), (2, 12)])
def test_zero_masks(tmp_path: Path, least: int, kept: int) -> None:
    pruner_files(tmp_path, "qwen", use_zero_masks=True, min_remain_num=least)
    out = gl.PrunedVLM(backbone("qwen"), gl.load_pruner(tmp_path)).prefill(**backbone("qwen").example_inputs(SIZES))
    assert int(out.keep[0].sum()) == kept
    assert not out.scores[0].sigmoid().any()


def test_vision_states_of_several_images_are_those_of_each_alone() -> None:
    """A block's output as it passes by in window order, brought to raster order by counting windows."""
    model, inputs = backbone("qwen").model, backbone("qwen").example_inputs(SIZES)
    states = backbone("qwen").embed(inputs, [0, 2]).vision
    grids = inputs["image_grid_thw"]
    expected: dict[int, list[Tensor]] = {0: [], 2: []}
    for grid, pixels in zip(grids, inputs["pixel_values"].split(grids.prod(-1).tolist()), strict=True):
        _, height, width = (grid // torch.tensor([1, 2, 2])).tolist()
        cells = [(row, column) for row in range(height) for column in range(width)]
        windows = sorted(range(len(cells)), key=lambda i: (cells[i][0] // 2, cells[i][1] // 2, *cells[i]))
        for block, parts in expected.items():
            seen: list[Tensor] = []
            hook = model.model.visual.blocks[block].register_forward_hook(
                lambda _m, _a, out, seen=seen: seen.append(out)
            )
            with torch.no_grad():
                model.model.visual(pixels, grid_thw=grid[None])
            hook.remove()
            (out,) = seen
            means = out.view(len(cells), 4, -1).mean(1)
            parts.append(means[torch.tensor([windows.index(i) for i in range(len(cells))])])
    for block, parts in expected.items():
        torch.testing.assert_close(states[block], torch.cat(parts), **CLOSE)


def test_vision_states_are_counted_as_the_reference_does(tmp_path: Path) -> None:
    pruner_files(tmp_path, "qwen", selected_visual_layers=[2, -1])
    with pytest.raises(GlimpseError, match=r"outputs of vision blocks, but got \[-1\]"):
        gl.load_pruner(tmp_path)
    pruner_files(tmp_path, "llava", selected_visual_layers=[0])
    with pytest.raises(GlimpseError, match=r"outputs of vision blocks, but got \[0\]"):
        gl.load_pruner(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_class_defaults(tmp_path: Path, family: str) -> None:
    """A field that is missing means what it does in the reference's configuration class; LLaVA's class has its own."""
    layers = {"num_hidden_layers": 24, "selected_layers": [5]} if family == "qwen" else {"num_hidden_layers": 24}
    shape = {name: value for name, value in COMMON.items() if name.startswith(("num_", "hidden_", "rms_"))} | layers
    config = {"model_type": FAMILIES[family]["model_type"]} | shape
    full = {"attn_fuse_size": 256, "visual_cond_size": 256, "deep_supervision": True, "le_layers": [0], "le_length": 1}
    visual = [8] if family == "qwen" else [23, 17, 11, 5]
    saved = new_modules({"selected_layers": [21], "selected_visual_layers": visual} | full | config, 32)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(saved, tmp_path / "new_modules_gp.pt")
    (stage,) = gl.load_pruner(tmp_path).stages
    scorer, policy = stage.scorer, stage.policy
    assert (stage.after_layer, scorer.attended) == ((23, (5,)) if family == "qwen" else (21, (21,)))
    assert scorer.conditions == ((8,) if family == "qwen" else (22, 16, 10, 4))
    assert scorer.window == (4 if family == "qwen" else None)
    assert (scorer.attention, scorer.glimpse_norm, scorer.dropout, scorer.glimpse.layers) == (
        "log_softmax", "rmsnorm", 0.0, (0,)
    )  # fmt: skip
    assert (policy.threshold, policy.min_tokens, policy.max_ratio, policy.per) == (0.5, 1, None, "sample")


EXPORTED: dict[str, dict[str, Any]] = VARIANTS | {
    "reference_masks": {"use_ref_masks": True},
    "zero_masks": {"use_zero_masks": True},
    "anchors": {"anchor_positions": ["tl", "br"]},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_is_written_back(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """Through the reference's layout, and through ours, to the same fields and the same weights."""
    for variant, fields in EXPORTED.items():
        if variant in (NOT_QWEN if family == "qwen" else NOT_LLAVA):
            continue
        source = tmp_path / variant
        source.mkdir()
        config, saved = pruner_files(source, family, **fields)
        saved = {name: moved(part, dtype) for name, part in saved.items()}
        torch.save(saved, source / "new_modules_gp.pt")
        first = gl.load_pruner(source)
        for pruner in (first, gl.load_pruner(gl.save_pruner(first, tmp_path / f"{variant}-ours"))):
            written, weights = upstream_files(pruner)
            assert written == config, variant
            torch.testing.assert_close(weights, saved, atol=0, rtol=0, msg=lambda m, v=variant: f"{v}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_keep_their_data_type(tmp_path: Path, dtype: torch.dtype) -> None:
    """Also where fewer bits would do: these weights are numbers that bfloat16 has."""
    _, saved = pruner_files(tmp_path, "qwen")
    saved = {name: moved(moved(part, torch.bfloat16), dtype) for name, part in saved.items()}
    torch.save(saved, tmp_path / "new_modules_gp.pt")
    first = gl.load_pruner(tmp_path)
    for pruner in (first, gl.load_pruner(gl.save_pruner(first, tmp_path / "ours"))):
        torch.testing.assert_close(upstream_files(pruner)[1], saved, atol=0, rtol=0)


def moved(part: Any, dtype: torch.dtype) -> Any:
    return part.to(dtype) if isinstance(part, Tensor) else {name: value.to(dtype) for name, value in part.items()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"le_layers": [1, 2]}, "to contain layer 0"),
        ({"le_layers": [0, 9]}, "lie among the model's"),
        ({"max_remain_ratio": 1.5}, "`max_ratio` to be a fraction"),
        ({"reduce_threshold": "high"}, "does not describe a pruner that can run"),
        ({"anchor_positions": ["middle"]}, "`anchors` to be 'tl'"),
        ({"attn_fuse_size": 18}, "divisible by"),
        ({"attn_fuse_hidden_act": "swoosh"}, "`attn_fuse_hidden_act`.*to be one of"),
        ({"min_remain_num": -1}, "`min_tokens`"),
        ({"reduce_layer": -1}, "`after_layer`"),
        ({"selected_layers": [3]}, "`attention_layers` to lie between"),
        ({"selected_layers": 2}, "does not describe a pruner that can run"),
    ],
)
def test_fields_that_make_no_sense(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    config, _ = pruner_files(tmp_path, "qwen")
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(GlimpseError, match=message):
        gl.load_pruner(tmp_path)


def test_fields_of_the_base_models_are_known(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Configurations as the reference saves them: Qwen2.5-VL's, and LLaVA-1.5's with all that its trainer leaves."""
    llava = {
        "architectures": ["LlavaLlamaForCausalLM"], "freeze_mm_mlp_adapter": False, "freeze_mm_vision_resampler": False,
        "image_aspect_ratio": "pad", "max_length": 4096, "mm_hidden_size": 1024, "mm_vision_select_layer": -2,
        "pretraining_tp": 1, "tokenizer_model_max_length": 2048, "tune_mm_mlp_adapter": False, "use_mm_proj": True,
        "tune_mm_vision_resampler": False, "unfreeze_mm_vision_tower": False, "torch_dtype": "float16",
        "temperature": 0.9, "top_p": 0.6, "do_sample": False, "rope_scaling": None, "attention_bias": False,
    }  # fmt: skip
    qwen = {
        "image_token_id": 1, "vision_token_id": 2, "rope_scaling": {}, "rope_theta": 1e6, "max_window_layers": 28,
        "use_sliding_window": False, "sliding_window": 32768, "id2label": {}, "output_attentions": False,
        "use_bfloat16": False, "is_encoder_decoder": False, "attn_fuse_use_flash_attn": False,
        "fixed_remain_ratio": None, "_attn_implementation_autoset": True, "_name_or_path": "x", "return_dict": True,
    }  # fmt: skip
    for family, fields in (("qwen", qwen), ("llava", llava)):
        pruner_files(tmp_path, family, **fields)
        gl.load_pruner(tmp_path)
    assert not recwarn.list
    pruner_files(tmp_path, "qwen", fixed_remain_ratio=0.1, mystery=None)
    with pytest.warns(UserWarning, match=r"not understood: \['fixed_remain_ratio', 'mystery'\]"):
        gl.load_pruner(tmp_path)


def test_weights_with_code_in_them_are_refused(tmp_path: Path) -> None:
    _, saved = pruner_files(tmp_path, "qwen")

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "trapped",))

    torch.save(saved | {"extra": Trap()}, tmp_path / "new_modules_gp.pt")
    with pytest.raises(GlimpseError, match="reading it failed: UnpicklingError"):
        gl.load_pruner(tmp_path)
    assert not (tmp_path / "trapped").exists()
