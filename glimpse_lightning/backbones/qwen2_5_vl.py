"""Qwen2.5-VL (3B, 7B, 32B, 72B) and glimpse-tiny, which has the same architecture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from glimpse_lightning.backbones.qwen_vl import QwenVLBackbone
from glimpse_lightning.core.visual_tokens import VisionTap


class Qwen25VLBackbone(QwenVLBackbone):
    """Adapter for ``Qwen2_5_VLForConditionalGeneration``, whose vision tower works in window order."""

    architectures = ("Qwen2_5_VLForConditionalGeneration",)

    def in_raster_order(self, captured: Mapping[VisionTap, Tensor], grid_thw: Tensor) -> dict[VisionTap, Tensor]:
        if not captured:
            return {}
        visual = self.model.model.visual
        if hasattr(visual, "get_window_index"):  # transformers before the helper moved
            window_index = torch.as_tensor(visual.get_window_index(grid_thw)[0])
        else:
            from transformers.vision_utils import get_vision_window_index

            window_index, _ = get_vision_window_index(
                grid_thw,
                spatial_merge_size=visual.spatial_merge_size,
                window_size=visual.window_size,
                patch_size=visual.patch_size,
            )
        raster = torch.argsort(window_index.to(grid_thw.device))  # once for all blocks: counting windows is slow
        return {tap: states[raster] for tap, states in captured.items()}
