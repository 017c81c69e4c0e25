"""Tiny random models of each supported family, built from their configuration classes."""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

TEXT = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 120, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
CLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4, "initializer_range": 0.2,
}  # fmt: skip


MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}}
QWEN = {
    "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8,
    "tie_word_embeddings": False,
}  # fmt: skip


def qwen2_5_vl(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48,
        "window_size": 56, "fullatt_block_indexes": [1], "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=TEXT | MROPE, vision_config=vision, **QWEN, attn_implementation=attn_implementation
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen2_vl(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    vision = {
        "depth": 3, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 48, "patch_size": 8,
        "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=TEXT | MROPE, vision_config=vision, **QWEN, attn_implementation=attn_implementation
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def qwen3_vl(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    vision = {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48, "patch_size": 8,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2], "initializer_range": 0.2,
    }  # fmt: skip
    rope = MROPE["rope_parameters"] | {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 16, "rope_parameters": rope}, vision_config=vision, **QWEN,
        attn_implementation=attn_implementation,
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration(config).eval()


def llava(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**CLIP), image_token_index=5,
        attn_implementation=attn_implementation,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval()


def llava_next(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlavaNextConfig(
        text_config=MistralConfig(**TEXT, sliding_window=9), vision_config=CLIPVisionConfig(**CLIP),
        image_token_index=5, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        attn_implementation=attn_implementation,
    )  # fmt: skip
    return LlavaNextForConditionalGeneration(config).eval()


def llava_onevision(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        text_config=Qwen2Config(**TEXT), vision_config=SiglipVisionConfig(**CLIP, vision_use_head=False),
        image_token_index=5, video_token_index=6, image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
        vision_aspect_ratio="anyres_max_2", attn_implementation=attn_implementation,
    )  # fmt: skip
    return LlavaOnevisionForConditionalGeneration(config).eval()


def internvl(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config = InternVLConfig(
        text_config=Qwen2Config(**TEXT), vision_config=InternVLVisionConfig(**CLIP), image_token_id=5,
        image_seq_length=4, tie_word_embeddings=False, attn_implementation=attn_implementation,
    )  # fmt: skip
    return InternVLForConditionalGeneration(config).eval()


def idefics3(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config = Idefics3Config(
        text_config=LlamaConfig(**TEXT), vision_config=CLIP, image_token_id=5, scale_factor=2,
        pad_token_id=0, attn_implementation=attn_implementation,
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config).eval()


def smolvlm(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    config = SmolVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIP, image_token_id=5, scale_factor=2,
        pad_token_id=0, attn_implementation=attn_implementation,
    )  # fmt: skip
    return SmolVLMForConditionalGeneration(config).eval()


def gemma3(attn_implementation: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    text = Gemma3TextConfig(
        **TEXT, head_dim=16, query_pre_attn_scalar=16, sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=SiglipVisionConfig(**CLIP, vision_use_head=False), mm_tokens_per_image=4,
        image_token_index=5, boi_token_index=7, eoi_token_index=8, attn_implementation=attn_implementation,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config).eval()


FAMILIES = {
    build.__name__: build
    for build in (
        llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, idefics3, smolvlm,
        gemma3,
    )
}  # fmt: skip
