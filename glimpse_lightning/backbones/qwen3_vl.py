"""Qwen3-VL, dense (2B, 4B, 8B, 32B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glimpse_lightning.backbones.qwen_vl import QwenVLBackbone
from glimpse_lightning.backbones.visuals import Visuals
from glimpse_lightning.core.visual_tokens import VisionTap
from glimpse_lightning.runtime.errors import GlimpseError


class Qwen3VLBackbone(QwenVLBackbone):
    """Adapter for ``Qwen3VLForConditionalGeneration``.

    Its deepstack features, taken from inside the vision tower, are added to the visual tokens after each of the first
    decoder layers (``Prompt.layer_features``). Time stamps, which are text, separate the frames of a video. A video is
    still one item.
    """

    architectures = ("Qwen3VLForConditionalGeneration",)

    def visuals(self, inputs: Mapping[str, Any], vision_layers: Sequence[VisionTap]) -> list[Visuals]:
        if not self.prune_video and inputs.get("pixel_values_videos") is not None:
            raise GlimpseError(
                "Expected `prune_video=True` for Qwen3-VL, whose deepstack features follow the tokens a pruner sees, "
                "but got False and a video. To keep a whole video, run it with `pruner=None`."
            )
        return super().visuals(inputs, vision_layers)
