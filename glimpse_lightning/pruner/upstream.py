"""Released pruners of the reference (HVision-NKU/GlimpsePrune): ``config.json`` and ``new_modules_gp.pt``."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlavaConfig, Qwen2_5_VLConfig
from transformers.activations import ACT2FN

from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.policies.threshold import Threshold
from glimpse_lightning.pruner.files import UPSTREAM_WEIGHTS, SavedPruner, cannot_run
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.paths import read_json
from glimpse_lightning.scorers.upstream_options import UpstreamOptions
from glimpse_lightning.scorers.vip import VIP

VISION_PROJECTION = "network.cond_in_projs.0.weight"

# Values of fields that a checkpoint leaves out: defaults of the reference's classes, not of its releases.
DEFAULTS: dict[str, Any] = {
    "selected_layers": (),
    "use_attention_logits": False,
    "attn_fuse_type": "AttnFuserV1",
    "attn_fuse_size": 256,
    "attn_fuse_global": False,
    "attn_fuse_num_heads": 4,
    "attn_fuse_hidden_act": "silu",
    "attn_fuse_use_flash_attn": False,
    "selected_visual_layers": (8,),
    "visual_cond_size": 256,
    "ori_attn_supervision": True,
    "deep_supervision": True,
    "le_layers": (0,),
    "le_length": 1,
    "le_dropout_prob": 0.0,
    "le_norm_type": "rmsnorm",
    "reduce_threshold": 0.5,
    "reduce_layer": 1000,
    "use_ref_masks": False,
    "use_zero_masks": False,
    "anchor_positions": (),
    "min_remain_num": 1,
    "max_remain_ratio": None,
}

# Further defaults, by model type: those in which LLaVA's class differs, and the decoder's shape.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2_5_vl_gp": {
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "rms_norm_eps": 1e-5,
    },
    "llava_llama_gp": {
        "selected_layers": (21,),
        "selected_visual_layers": (23, 17, 11, 5),
        "reduce_layer": 21,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "rms_norm_eps": 1e-6,
    },
}

# Fields of the base models, unrelated to pruning. First those of any model in older versions of transformers.
BASE_FIELDS = (
    "add_cross_attention bad_words_ids begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size "
    "decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
    "exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id is_decoder "
    "length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences "
    "output_scores prefix pruned_heads remove_invalid_values repetition_penalty return_dict_in_generate rope_scaling "
    "rope_theta sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder "
    "tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript typical_p use_bfloat16 "
    # Qwen2.5-VL
    "image_token_id sliding_window text_config video_token_id vision_config vision_end_token_id "
    "vision_start_token_id vision_token_id "
    # LLaVA
    "freeze_mm_mlp_adapter freeze_mm_vision_resampler image_aspect_ratio image_crop_resolution image_grid_pinpoints "
    "image_split_resolution tokenizer_model_max_length tokenizer_padding_side tune_mm_mlp_adapter "
    "tune_mm_vision_resampler unfreeze_mm_vision_tower use_mm_proj vision_tower"
)


def read_pruner(folder: Path) -> SavedPruner:
    """The pruner in a folder of the reference, in fp32, with the runtime settings that were saved with it.

    Raises:
        GlimpseError: where the folder is incomplete, or has a setting that no release has.
    """
    config = read_json(folder / "config.json")
    field = _fields(config, folder)
    llava = config["model_type"] == "llava_llama_gp"
    glimpse = llava or bool(field["le_layers"] and field["le_length"])
    weights = _read_weights(folder / UPSTREAM_WEIGHTS, glimpse)
    facts = _facts(config, weights)
    try:
        stage = _stage(field, glimpse, facts, None if llava or field["attn_fuse_global"] else window_side(config))
    except (ValueError, TypeError) as error:
        raise cannot_run(folder, error) from error
    return SavedPruner(
        [stage],
        facts,
        {f"stages.0.scorer.{name}": value for name, value in weights.items()},
        origin=config,
        origin_dtype=str(weights[VISION_PROJECTION].dtype).removeprefix("torch."),
    )


def _stage(field: dict[str, Any], glimpse: bool, facts: ModelFacts, window: int | None) -> PruneStage:
    """The only stage that the complete fields of a configuration describe, not built."""
    llava = facts.model_type == "llava"
    masks: Literal["predicted", "reference", "zero"] = "predicted"
    if field["use_ref_masks"] or field["use_zero_masks"]:
        masks = "reference" if field["use_ref_masks"] else "zero"
    scorer = VIP(
        vision_layers=[_block(layer) if llava else layer for layer in field["selected_visual_layers"]],
        attention_layers=list(field["selected_layers"]),
        attention="logits" if field["use_attention_logits"] else "log_softmax",
        attention_dim=field["attn_fuse_size"],
        condition_dim=field["visual_cond_size"],
        heads=field["attn_fuse_num_heads"],
        dropout=field["le_dropout_prob"],
        query="glimpse" if glimpse else "last",
        upstream=UpstreamOptions(
            window=window,
            deep_supervision=field["deep_supervision"],
            glimpse_length=field["le_length"],
            glimpse_layers=list(field["le_layers"]),
            glimpse_norm="rmsnorm" if llava else field["le_norm_type"],
            masks=masks,
            activation=field["attn_fuse_hidden_act"],
        ),
    )
    policy = Threshold(
        threshold=field["reduce_threshold"],
        max_ratio=field["max_remain_ratio"],
        min_tokens=field["min_remain_num"] or 0,
        anchors=list(field["anchor_positions"] or ()),
        # The reference's rule runs entry by entry over predictions (one per sample) or given masks (one per image).
        per="sample" if masks == "predicted" else "item",
    )
    return PruneStage(min(field["reduce_layer"], facts.num_layers - 1), scorer, policy)


def _block(index: int) -> int:
    """The vision block whose output is entry ``index`` of CLIP's ``hidden_states``; entry 0 is the embedding."""
    return index - 1 if index > 0 else index


def window_side(config: dict[str, Any]) -> int:
    """Side of the vision tower's attention windows, in visual tokens (after merging)."""
    vision = config.get("vision_config", {})
    return vision.get("window_size", 112) // vision.get("spatial_merge_size", 2) // vision.get("patch_size", 14)


def _fields(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """All fields, class defaults included; refuses values that no release has, warns of fields of unknown meaning."""
    path = folder / "config.json"
    expected = {
        "model_type": tuple(SHAPES),
        "attn_fuse_type": ("AttnFuserV1",),
        "attn_fuse_hidden_act": tuple(ACT2FN),
        "le_norm_type": ("rmsnorm", "layernorm"),
    }
    for name, choices in expected.items():
        value = config.get(name, DEFAULTS.get(name))
        if value not in choices:
            raise GlimpseError(
                f"Expected `{name}` in {path} to be one of {list(choices)}, but got {value!r}. No released pruner uses "
                "it: train one here instead."
            )
    model_type = config["model_type"]
    field = DEFAULTS | SHAPES[model_type] | config
    for name in ("selected_layers", "selected_visual_layers"):
        if not field[name]:
            raise GlimpseError(
                f"Expected `{name}` in {path} to name at least one layer, but got none. Without it the reference's "
                "predictor has no input."
            )
    refused = [i for i in field["selected_visual_layers"] if (i == 0 if model_type == "llava_llama_gp" else i < 0)]
    if refused:
        raise GlimpseError(
            f"Expected `selected_visual_layers` in {path} to be outputs of vision blocks, but got {refused}. Count "
            "Qwen2.5-VL's blocks from 0; LLaVA's entry 0, the embedding before the first block, cannot condition a "
            "predictor here."
        )
    _warn_of_unknown(config, path)
    return field


def _warn_of_unknown(config: dict[str, Any], path: Path) -> None:
    model_type = config["model_type"]
    base = Qwen2_5_VLConfig() if model_type == "qwen2_5_vl_gp" else LlavaConfig()
    known = {*DEFAULTS, *SHAPES[model_type], *BASE_FIELDS.split(), *base.to_dict(), *base.text_config.to_dict()}
    if config.get("fixed_remain_ratio") is None:
        known.add("fixed_remain_ratio")  # a field of later versions of the reference: a policy of its own, if set
    unknown = sorted(name for name in config if name not in known and not name.startswith(("_", "mm_")))
    if unknown:
        warnings.warn(f"Fields of {path} that are not understood: {unknown}: ignored.", stacklevel=5)


def _read_weights(path: Path, glimpse: bool) -> dict[str, Tensor]:
    """Weights under the names of :class:`VIP`'s parameters."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        weights = {f"network.{name}": value for name, value in saved["attn_fuser"].items()}
        if glimpse:
            weights["glimpse.embeddings"] = saved["learnable_embeddings"]
            weights |= {f"glimpse.proj.{name}": value for name, value in saved["le_proj"].items()}
            weights |= {f"glimpse.norm.{name}": value for name, value in saved["le_norm"].items()}
        weights[VISION_PROJECTION]  # the vision tower's width is read from it
        return weights
    except (KeyError, AttributeError, TypeError, RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise GlimpseError(
            f"Expected {path} to hold `attn_fuser`, `learnable_embeddings`, `le_proj` and `le_norm`, as the reference "
            f"saves them, but reading it failed: {type(error).__name__}: {error}. Copy the file again."
        ) from error


def _facts(config: dict[str, Any], weights: dict[str, Tensor]) -> ModelFacts:
    model_type = config["model_type"]
    shape = SHAPES[model_type] | config.get("text_config", {}) | config
    llava = model_type == "llava_llama_gp"
    return ModelFacts(
        num_layers=shape["num_hidden_layers"],
        num_heads=shape["num_attention_heads"],
        num_kv_heads=shape["num_key_value_heads"] or shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        rms_norm_eps=shape["rms_norm_eps"],
        # LLaVA's config names its vision tower without sizes: the width is the weights', the depth unknown (0).
        vision_layers=0 if llava else config.get("vision_config", {}).get("depth", 32),
        vision_hidden_size=weights[VISION_PROJECTION].shape[1],
        model_type="llava" if llava else "qwen2_5_vl",
    )
