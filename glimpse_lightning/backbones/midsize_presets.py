"""Mid-size architectures with random weights, one per family: small enough to measure speed on a CPU in minutes.

Twelve decoder layers of width 384 with heads of 64 (as published models have 128), a vision tower of four blocks. No
such models are published: they measure the engine, not the speed of a product.
"""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 4096, "rms_norm_eps": 1e-6, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32768,
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e6}
_MROPE = {"rope_parameters": {**_ROPE, "mrope_section": [8, 12, 12]}}
_PLAIN = {"rope_parameters": _ROPE}
_QWEN_TOKENS = {
    "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8,
    "tie_word_embeddings": True,
}  # fmt: skip


def _tower(model_type: str, image: int, patch: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 3, "image_size": image, "patch_size": patch, **more,
    }  # fmt: skip


def _qwen_tower(**more: Any) -> dict[str, Any]:
    return {"depth": 4, "num_heads": 3, "patch_size": 14, **more}


MIDSIZE: dict[str, dict[str, Any]] = {
    "mid-qwen2.5-vl": {
        "model_type": "qwen2_5_vl", **_QWEN_TOKENS, "text_config": {**_TEXT, **_MROPE},
        "vision_config": _qwen_tower(
            hidden_size=192, intermediate_size=512, out_hidden_size=384, fullatt_block_indexes=[1, 3]
        ),
    },
    "mid-qwen2-vl": {
        "model_type": "qwen2_vl", **_QWEN_TOKENS, "text_config": {**_TEXT, **_MROPE},
        "vision_config": _qwen_tower(embed_dim=192, hidden_size=384),
    },
    "mid-qwen3-vl": {
        "model_type": "qwen3_vl", **_QWEN_TOKENS,
        "text_config": {
            **_TEXT, "rope_parameters": {**_ROPE, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
        },
        "vision_config": {
            **_qwen_tower(hidden_size=192, intermediate_size=512, out_hidden_size=384), "patch_size": 16,
            "deepstack_visual_indexes": [0, 1, 2],
        },
    },
    "mid-llava": {
        "model_type": "llava", "image_token_index": 5, "text_config": {**_TEXT, **_PLAIN, "model_type": "llama"},
        "vision_config": _tower("clip_vision_model", 336, 14),
    },
    "mid-internvl": {
        "model_type": "internvl", "image_token_id": 5, "text_config": {**_TEXT, **_PLAIN, "model_type": "qwen2"},
        "vision_config": _tower("internvl_vision", 448, 14),
    },
    "mid-llava-onevision": {
        "model_type": "llava_onevision", "image_token_index": 5, "video_token_index": 6,
        "text_config": {**_TEXT, **_PLAIN, "model_type": "qwen2"},
        "vision_config": _tower("siglip_vision_model", 384, 14, vision_use_head=False),
    },
    "mid-smolvlm": {
        "model_type": "smolvlm", "image_token_id": 5, "scale_factor": 4,
        "text_config": {**_TEXT, **_PLAIN, "model_type": "llama"},
        "vision_config": _tower("smolvlm_vision", 512, 16),
    },
}  # fmt: skip
"""Sizes by preset."""
