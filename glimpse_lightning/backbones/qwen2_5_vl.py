"""Qwen2.5-VL (3B, 7B, 32B, 72B) and glimpse-tiny, which has the same architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from glimpse_lightning.backbones.base import Backbone, Prompt, pad_rows, text_position_ids
from glimpse_lightning.backbones.vision_taps import capture_blocks
from glimpse_lightning.visual_tokens import ModelFacts


class Qwen25VLBackbone(Backbone):
    """Adapter for ``Qwen2_5_VLForConditionalGeneration``.

    Positions are ``[3, B, N]`` (temporal, height, width). ``vision_layers`` count vision blocks from 0; the state of a
    visual token is the mean over its 2 x 2 patches of that block's output, before the merger.
    """

    architectures = ("Qwen2_5_VLForConditionalGeneration",)

    @property
    def decoder(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def facts(self) -> ModelFacts:
        text, vision = self.text_config, self.model.config.vision_config
        return ModelFacts(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            rms_norm_eps=text.rms_norm_eps,
            vision_layers=vision.depth,
            vision_hidden_size=vision.hidden_size,
            model_type=self.model.config.model_type,
        )

    def embed_prompt(self, inputs: Mapping[str, Any], vision_layers: Sequence[int]) -> Prompt:
        core, config = self.model.model, self.model.config
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        grids = {"image": inputs.get("image_grid_thw"), "video": inputs.get("video_grid_thw")}
        token_types = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
        embeds = core.get_input_embeddings()(ids)
        visual = ids == config.image_token_id
        grid, states = ids.new_zeros(0, 3), {layer: embeds.new_zeros(0, 0) for layer in vision_layers}
        if inputs.get("pixel_values") is not None:
            with capture_blocks(core.visual.blocks, vision_layers) as captured:
                features = core.get_image_features(inputs["pixel_values"], grids["image"]).pooler_output
            states = {layer: self._merged(captured[layer], grids["image"]) for layer in vision_layers}
            merge = config.vision_config.spatial_merge_size
            grid = grids["image"] // torch.tensor([1, merge, merge], device=ids.device)
            embeds = self._place(embeds, visual, torch.cat(list(features)))
        if inputs.get("pixel_values_videos") is not None:
            features = core.get_video_features(inputs["pixel_values_videos"], grids["video"]).pooler_output
            embeds = self._place(embeds, ids == config.video_token_id, torch.cat(list(features)))
        if any(grid_thw is not None for grid_thw in grids.values()):
            position_ids, _ = core.get_rope_index(
                ids,
                mm_token_type_ids=token_types,
                image_grid_thw=grids["image"],
                video_grid_thw=grids["video"],
                second_per_grid_ts=inputs.get("second_per_grid_ts"),
                attention_mask=mask,
            )
            position_ids = position_ids.masked_fill(~mask.bool(), 1)
        else:
            position_ids = text_position_ids(mask).expand(3, -1, -1)
        return Prompt(embeds, mask.bool(), position_ids, visual, grid, states)

    def hf_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Without the token types Hugging Face silently falls back to one-dimensional positions.
        return {**inputs, "mm_token_type_ids": (inputs["input_ids"] == self.model.config.image_token_id).long()}

    def example_inputs(
        self, sizes: Sequence[Sequence[tuple[int, int]]], padding_side: str = "left", first_sample: int = 0
    ) -> dict[str, Tensor]:
        config = self.model.config
        merge, vision = config.vision_config.spatial_merge_size, config.vision_config
        patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        special = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
        rows, pixels, grids = [], [], []
        for index, images in enumerate(sizes):
            generator = torch.Generator().manual_seed(first_sample + index)
            words = torch.tensor([i for i in range(10, self.text_config.vocab_size) if i not in special])
            row = [words[torch.randint(len(words), (2,), generator=generator)]]
            for height, width in images:
                image = torch.full((height * width,), config.image_token_id)
                start, end = torch.tensor([config.vision_start_token_id]), torch.tensor([config.vision_end_token_id])
                row += [start, image, end]
                pixels.append(torch.randn(height * width * merge**2, patch_values, generator=generator))
                grids.append([1, height * merge, width * merge])
            row.append(words[torch.randint(len(words), (3 + (first_sample + index) % 3,), generator=generator)])
            rows.append(torch.cat(row))
        inputs = pad_rows(rows, padding_side, 0)
        if pixels:
            inputs |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    @staticmethod
    def _place(embeds: Tensor, where: Tensor, features: Tensor) -> Tensor:
        if int(where.sum()) != len(features):
            raise ValueError(
                f"Expected one visual placeholder per visual token, but got {int(where.sum())} placeholders and "
                f"{len(features)} tokens; the prompt must come from the same processor call as the images."
            )
        return embeds.masked_scatter(where[..., None], features.to(embeds.device, embeds.dtype))

    def _merged(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Block output ``[patches, Dv]`` in window order -> one state per visual token, in raster order."""
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
        merged = patches.view(-1, visual.spatial_merge_unit, patches.shape[-1]).mean(1)
        return merged[torch.argsort(window_index.to(merged.device))]
