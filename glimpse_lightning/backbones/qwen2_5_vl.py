"""Qwen2.5-VL (3B, 7B, 32B, 72B) and glimpse-tiny, which has the same architecture."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.backbones.qwen_vl import QwenVLBackbone


class Qwen25VLBackbone(QwenVLBackbone):
    """Adapter for ``Qwen2_5_VLForConditionalGeneration``, whose vision tower works in window order."""

    architectures = ("Qwen2_5_VLForConditionalGeneration",)

    def merge_states(self, states: Tensor, grid_thw: Tensor) -> Tensor:
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
        merged = super().merge_states(states, grid_thw)
        return merged[torch.argsort(window_index.to(merged.device))]
