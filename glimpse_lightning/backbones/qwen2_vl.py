"""Qwen2-VL (2B, 7B, 72B)."""

from __future__ import annotations

from glimpse_lightning.backbones.qwen_vl import QwenVLBackbone


class Qwen2VLBackbone(QwenVLBackbone):
    """Adapter for ``Qwen2VLForConditionalGeneration``."""

    architectures = ("Qwen2VLForConditionalGeneration",)

    @property
    def vision_hidden_size(self) -> int:
        return self.model.config.vision_config.embed_dim  # `hidden_size` is the decoder's here
