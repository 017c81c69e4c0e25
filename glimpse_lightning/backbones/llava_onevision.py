"""LLaVA-OneVision: tiles of any resolution for a single image, one crop each for several, pooled frames for video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.backbones.llava_next import LlavaNextBackbone
from glimpse_lightning.backbones.visuals import Visuals
from glimpse_lightning.core.visual_tokens import VisionTap


class LlavaOnevisionBackbone(LlavaNextBackbone):
    """Adapter for ``LlavaOnevisionForConditionalGeneration``.

    Items are those of LLaVA-NeXT; if a sample has several images, each of them is one crop and one item, as reported by
    the processor (``batch_num_images``). A video is one item with ``t`` frames. The newline after a row, a crop or a
    video is structure and kept like text. Vision states are resampled as the features are: bilinearly, for mosaics
    larger than the model allows and for frames.
    """

    architectures = ("LlavaOnevisionForConditionalGeneration",)
    input_names = (
        *LlavaNextBackbone.input_names, "batch_num_images", "pixel_values_videos", "image_sizes_videos",
    )  # fmt: skip

    def image_features(self, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
        return self.model.model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], batch_num_images=inputs.get("batch_num_images")
        ).pooler_output

    def tiles(self, inputs: Mapping[str, Any]) -> list[int]:
        tiles = super().tiles(inputs)
        if inputs.get("batch_num_images") is None:
            return tiles
        single = [n == 1 for n in inputs["batch_num_images"].tolist() for _ in range(n)]
        return [count if alone else 1 for count, alone in zip(tiles, single, strict=True)]

    def pack(self, inputs: Mapping[str, Any], crops: Tensor, newline: Tensor | None) -> list[Tensor]:
        return self.model.model.pack_image_features(
            crops.split(self.tiles(inputs)),
            inputs["image_sizes"],
            image_newline=newline,
            vision_aspect_ratio=self.model.config.vision_aspect_ratio,
        )[0]

    def visuals(self, inputs: Mapping[str, Any], vision_layers: Sequence[VisionTap]) -> list[Visuals]:
        parts = super().visuals(inputs, vision_layers)
        if inputs.get("pixel_values_videos") is not None:
            video = self._video(inputs["pixel_values_videos"], vision_layers)
            parts.append(video if self.prune_video else video.all_kept())
        return parts

    def _video(self, pixels: Tensor, vision_layers: Sequence[VisionTap]) -> Visuals:
        """Videos ``[videos, frames, channels, height, width]``."""
        core, side = self.model.model, -(-self.tokens_per_side // 2)
        patches = self.tokens_per_side**2

        def merge(states: Tensor) -> Tensor:
            return core.apply_pooling(states[:, -patches:]).flatten(0, 1)

        with self.capture(vision_layers, merge) as captured:
            features = core.get_video_features(pixels).pooler_output
        if features.shape[1] == pixels.shape[1] * side**2:  # older transformers add the newline later
            newline = core.image_newline.to(features).expand(len(features), 1, -1)
            features = torch.cat([features, newline], 1)
        prunable = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        prunable[:, -1] = False
        return Visuals(
            token_id=self.model.config.video_token_id,
            features=features.flatten(0, 1),
            grid=torch.tensor([[pixels.shape[1], side, side]], device=pixels.device).expand(len(pixels), 3),
            prunable=prunable.flatten(),
            states=captured,
        )
