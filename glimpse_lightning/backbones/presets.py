"""Published architectures with random weights, so that speed and memory can be measured without a download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from glimpse_lightning.backbones.midsize_presets import MIDSIZE
from glimpse_lightning.runtime.dtypes import default_device
from glimpse_lightning.runtime.errors import GlimpseError

PREFIX = "random:"


def _text(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab, **more,
    }  # fmt: skip


def _tower(
    model_type: str, hidden: int, intermediate: int, layers: int, heads: int, image: int, patch: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type, "hidden_size": hidden, "intermediate_size": intermediate, "image_size": image,
        "num_hidden_layers": layers, "num_attention_heads": heads, "patch_size": patch, **more,
    }  # fmt: skip


def _qwen25_vision(out: int, intermediate: int = 3420) -> dict[str, Any]:
    return {"hidden_size": 1280, "intermediate_size": intermediate, "out_hidden_size": out}


_MROPE = {
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
_INTERLEAVED = {
    "head_dim": 128, "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True
    },
}  # fmt: skip
_VICUNA = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
_QWEN2 = {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
_SMOL = {
    "model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "pad_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
}  # fmt: skip
_CLIP = _tower("clip_vision_model", 1024, 4096, 24, 16, 336, 14, projection_dim=768)
_SIGLIP_B = _tower("smolvlm_vision", 768, 3072, 12, 12, 512, 16)

PRESETS: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-3b": {
        "model_type": "qwen2_5_vl", "tie_word_embeddings": True, "vision_config": _qwen25_vision(2048),
        "text_config": _text(2048, 11008, 36, 16, 2, 151936, **_MROPE),
    },
    "qwen2.5-vl-7b": {
        "model_type": "qwen2_5_vl", "vision_config": _qwen25_vision(3584),
        "text_config": _text(3584, 18944, 28, 28, 4, 152064, **_MROPE),
    },
    "qwen2.5-vl-32b": {
        "model_type": "qwen2_5_vl", "vision_config": _qwen25_vision(5120, 3456),
        "text_config": _text(5120, 27648, 64, 40, 8, 152064, **_MROPE),
    },
    "qwen2.5-vl-72b": {
        "model_type": "qwen2_5_vl", "vision_config": _qwen25_vision(8192, 3456),
        "text_config": _text(8192, 29568, 80, 64, 8, 152064, **_MROPE),
    },
    "qwen2-vl-2b": {
        "model_type": "qwen2_vl", "tie_word_embeddings": True, "vision_config": {"hidden_size": 1536},
        "text_config": _text(1536, 8960, 28, 12, 2, 151936, **_MROPE),
    },
    "qwen2-vl-7b": {
        "model_type": "qwen2_vl", "vision_config": {"hidden_size": 3584},
        "text_config": _text(3584, 18944, 28, 28, 4, 152064, **_MROPE),
    },
    "qwen3-vl-4b": {
        "model_type": "qwen3_vl", "tie_word_embeddings": True,
        "text_config": _text(2560, 9728, 36, 32, 8, 151936, **_INTERLEAVED),
        "vision_config": {
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
    "qwen3-vl-8b": {
        "model_type": "qwen3_vl", "vision_config": {"out_hidden_size": 4096},
        "text_config": _text(4096, 12288, 36, 32, 8, 151936, **_INTERLEAVED),
    },
    "llava-1.5-7b": {
        "model_type": "llava", "vision_config": _CLIP, "text_config": _text(4096, 11008, 32, 32, 32, 32064, **_VICUNA),
    },
    "llava-1.5-13b": {
        "model_type": "llava", "vision_config": _CLIP, "text_config": _text(5120, 13824, 40, 40, 40, 32064, **_VICUNA),
    },
    "llava-next-7b": {
        "model_type": "llava_next", "vision_config": _CLIP,
        "text_config": _text(
            4096, 14336, 32, 32, 8, 32064, model_type="mistral", rms_norm_eps=1e-5, sliding_window=None,
            max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        ),
    },
    "llava-onevision-7b": {
        "model_type": "llava_onevision", "text_config": _text(3584, 18944, 28, 28, 4, 152064, **_QWEN2),
        "vision_config": _tower("siglip_vision_model", 1152, 4304, 26, 16, 384, 14, vision_use_head=False),
    },
    "internvl3-8b": {
        "model_type": "internvl", "tie_word_embeddings": False,
        "text_config": _text(3584, 18944, 28, 28, 4, 151674, **_QWEN2),
        "vision_config": _tower("internvl_vision", 1024, 4096, 24, 16, 448, 14, attention_bias=True),
    },
    "smolvlm-256m": {
        "model_type": "smolvlm", "image_token_id": 49190, "scale_factor": 4, "vision_config": _SIGLIP_B,
        "text_config": _text(576, 1536, 30, 9, 3, 49280, **_SMOL),
    },
    "smolvlm-500m": {
        "model_type": "smolvlm", "image_token_id": 49190, "scale_factor": 4, "vision_config": _SIGLIP_B,
        "text_config": _text(960, 2560, 32, 15, 5, 49280, **_SMOL),
    },
    "smolvlm-2b": {
        "model_type": "idefics3", "image_token_id": 49153, "scale_factor": 3,
        "text_config": _text(2048, 8192, 24, 32, 32, 49155, **_SMOL),
        "vision_config": _tower("idefics3_vision", 1152, 4304, 27, 16, 384, 14),
    },
}  # fmt: skip
"""Sizes of the published configurations, by preset."""


def preset_config(name: str) -> PretrainedConfig:
    """Configuration of ``name``, with or without the prefix ``random:``.

    Raises:
        GlimpseError: if there is no such preset.
    """
    known = {**PRESETS, **MIDSIZE}
    preset = known.get(name.removeprefix(PREFIX))
    if preset is None:
        raise GlimpseError(
            f"Expected {PREFIX}<preset> with one of {', '.join(sorted(known))}, but got {name!r}; choose one of "
            "them, or give a hub id or a folder for a model with weights."
        )
    return AutoConfig.for_model(**preset)


def check_has_processor(name: str, otherwise: str = "") -> None:
    """Raise for a preset, before billions of weights are made: it has no processor, which questions need.

    Args:
        name: name of a backbone.
        otherwise: another remedy, in words that follow the first one.

    Raises:
        GlimpseError: if ``name`` is one of a preset.
    """
    if name.startswith(PREFIX):
        raise GlimpseError(
            f"Expected a model with a processor for questions and images, but got {name!r}, random weights without "
            f"one. Name glimpse-tiny, a hub id or a folder with `--backbone`{otherwise}."
        )


def random_model(
    name: str,
    dtype: torch.dtype,
    attn_implementation: str | dict[str, str],
    device: str | torch.device | dict[str, Any] | None,
) -> PreTrainedModel:
    """A model of preset ``name`` with random weights, created directly on ``device`` in ``dtype``."""
    if isinstance(device, dict):
        raise GlimpseError("Expected one device for random weights, but got a device map; say `cuda`, `cpu` or `meta`.")
    if device == "auto":
        device = default_device()
    with torch.device(device or "cpu"):
        return AutoModelForImageTextToText.from_config(
            preset_config(name), dtype=dtype, attn_implementation=attn_implementation
        ).eval()
