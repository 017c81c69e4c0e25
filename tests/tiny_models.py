"""Tiny random models of each supported family, built from their configuration classes."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration


def qwen2_5_vl(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    text = {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 120, "pad_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48,
        "window_size": 56, "fullatt_block_indexes": [1], "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=5, video_token_id=6, vision_start_token_id=7,
        vision_end_token_id=8, tie_word_embeddings=False, attn_implementation=attn_implementation,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config).eval()


FAMILIES = {"qwen2_5_vl": qwen2_5_vl}
