"""Base class of the Qwen-VL families: images and videos on grids of any shape, and three-dimensional positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glimpse_lightning.backbones.base import text_position_ids
from glimpse_lightning.backbones.placeholders import PlaceholderBackbone
from glimpse_lightning.backbones.visuals import Visuals
from glimpse_lightning.core.visual_tokens import VisionPixels, VisionTap


class QwenVLBackbone(PlaceholderBackbone):
    """Adapter base for Qwen-VL models, whose positions are ``[3, B, N]`` (temporal, height, width).

    Images and videos are items in the order of the prompt; a video's grid has ``t > 1``. The reference prunes images
    only, as does ``prune_video=False``, which keeps every token of a video. ``vision_layers`` count vision blocks from
    0; the state of a visual token is the mean over its 2 x 2 patches of that block's output, before the merger.
    """

    input_names = (
        *PlaceholderBackbone.input_names, "image_grid_thw", "pixel_values_videos", "video_grid_thw",
        "second_per_grid_ts", "first_copies",
    )  # fmt: skip

    image_only_processor = True

    @property
    def vision_blocks(self) -> nn.ModuleList:
        return self.model.model.visual.blocks

    @property
    def max_pixels(self) -> int | None:
        return None if self.processor is None else self.processor.image_processor.size["longest_edge"]

    @property
    def pixel_multiple(self) -> int:
        vision = self.model.config.vision_config
        return vision.patch_size * vision.spatial_merge_size

    def visuals(self, inputs: Mapping[str, Any], vision_layers: Sequence[VisionTap]) -> list[Visuals]:
        parts = []
        if inputs.get("pixel_values") is not None:
            grid, first = inputs["image_grid_thw"], inputs.get("first_copies")
            if first is None:
                parts.append(self._visuals("image", inputs["pixel_values"], grid, vision_layers))
            else:
                seen, which = first.unique(return_inverse=True)
                parts.append(self._visuals("image", inputs["pixel_values"], grid[seen], vision_layers).taken(which))
        if inputs.get("pixel_values_videos") is not None:
            video = self._visuals("video", inputs["pixel_values_videos"], inputs["video_grid_thw"], vision_layers)
            parts.append(video if self.prune_video else video.all_kept())
        return parts

    def _visuals(self, kind: str, pixels: Tensor, grid_thw: Tensor, vision_layers: Sequence[VisionTap]) -> Visuals:
        core, config = self.model.model, self.model.config
        encode = core.get_image_features if kind == "image" else core.get_video_features
        with self.capture(vision_layers, self._merge) as captured:
            output = encode(pixels, grid_thw)
        merge = config.vision_config.spatial_merge_size
        features = torch.cat(list(output.pooler_output))
        states = self.in_raster_order(captured, grid_thw)
        if VisionPixels() in vision_layers:
            states[VisionPixels()] = pixels.reshape(len(features), -1)  # merge unit by merge unit, in raster order
        return Visuals(
            token_id=config.image_token_id if kind == "image" else config.video_token_id,
            features=features,
            grid=grid_thw // torch.tensor([1, merge, merge], device=grid_thw.device),
            prunable=torch.ones(len(features), dtype=torch.bool, device=features.device),
            states=states,
            layer_features={
                # One tensor per layer, or (later transformers) one per layer and image.
                layer: added if isinstance(added, Tensor) else torch.cat(list(added))
                for layer, added in enumerate(getattr(output, "deepstack_features", None) or [])
            },
        )

    def share_images(self, inputs: dict[str, Any], first: Sequence[int]) -> dict[str, Any]:
        rows = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
        return {
            **inputs,
            "pixel_values": torch.cat([rows[image] for image in sorted(set(first))]),
            "first_copies": torch.tensor(first),
        }

    def _merge(self, states: Tensor) -> Tensor:
        """A block's output ``[patches, Dv]``, merge unit by merge unit -> ``[V, Dv]``."""
        unit = self.model.config.vision_config.spatial_merge_size**2
        return states.view(-1, unit, states.shape[-1]).mean(1)

    def in_raster_order(self, captured: Mapping[VisionTap, Tensor], grid_thw: Tensor) -> dict[VisionTap, Tensor]:
        """States ``[V, Dv]`` in the tower's order -> in raster order."""
        return dict(captured)

    def token_types(self, inputs: Mapping[str, Any]) -> Tensor:
        """``[B, N]`` 1 at images, 2 at videos."""
        ids, config = inputs["input_ids"], self.model.config
        return (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()

    def position_ids(self, inputs: Mapping[str, Any]) -> Tensor:
        mask = inputs["attention_mask"]
        if inputs.get("image_grid_thw") is None and inputs.get("video_grid_thw") is None:
            return text_position_ids(mask).expand(3, -1, -1)
        position_ids, _ = self.model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=self.token_types(inputs),
            image_grid_thw=inputs.get("image_grid_thw"),
            video_grid_thw=inputs.get("video_grid_thw"),
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
            attention_mask=mask,
        )
        return position_ids.masked_fill(~mask.bool(), 1)

    def hf_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Without the token types, Hugging Face silently uses one-dimensional positions.
        wanted = {**inputs, "mm_token_type_ids": self.token_types(inputs)}
        first = wanted.pop("first_copies", None)
        if first is not None:  # `share_images` left out the pixels of equal images
            seen, which = first.unique(return_inverse=True)
            rows = wanted["pixel_values"].split(wanted["image_grid_thw"][seen].prod(-1).tolist())
            wanted["pixel_values"] = torch.cat([rows[image] for image in which.tolist()])
        return wanted

    def example_image(self, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        config, vision = self.model.config, self.model.config.vision_config
        start, end = config.vision_start_token_id, config.vision_end_token_id
        tokens = torch.tensor([start, *[config.image_token_id] * (height * width), end])
        merge = vision.spatial_merge_size
        values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(height * width * merge**2, values, generator=generator)
        return tokens, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height * merge, width * merge]])}
