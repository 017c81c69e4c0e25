"""Idefics3 and SmolVLM (256M, 500M, 2B)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glimpse_lightning.backbones import regions
from glimpse_lightning.backbones.square_grid import SquareGridBackbone
from glimpse_lightning.core.visual_tokens import Views


class Idefics3Backbone(SquareGridBackbone):
    """Adapter for ``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration``.

    Every crop of an image, the whole image after the crops, and every frame of a video is an item with a square grid.
    Row and column markers, ``<global-img>`` and ``<fake_token_around_image>`` are structure and kept like text. Batches
    are padded with images of zeros, which the model itself leaves out; padding within an image is masked by
    ``pixel_attention_mask``. A crop's place in the image is read from its marker in the prompt. The state of a visual
    token is the mean over the patches that pixel shuffling merges into it.
    """

    architectures = ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")
    input_names = (*SquareGridBackbone.input_names, "pixel_attention_mask")

    @property
    def vision_blocks(self) -> nn.ModuleList:
        return self.model.model.vision_model.encoder.layers

    @property
    def tokens_per_side(self) -> int:
        return self.patches_per_side // self.model.config.scale_factor

    def image_features(self, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
        pixels, mask = inputs["pixel_values"], inputs.get("pixel_attention_mask")
        return self.model.model.get_image_features(pixels, mask).pooler_output

    @cached_property
    def tile_markers(self) -> dict[int, tuple[int, int]]:
        """(row, column), counted from 1, by id of the token before the tile's tokens."""
        if self.processor is None:
            return {}
        found = {id: re.fullmatch(r"<row_(\d+)_col_(\d+)>", token) for token, id in self.tokenizer.get_vocab().items()}
        return {id: (int(match[1]), int(match[2])) for id, match in found.items() if match}

    def views(self, inputs: Mapping[str, Any], grid: Tensor) -> Views | None:
        ids = inputs["input_ids"]
        starts = F.pad((ids == self.model.config.image_token_id).long(), (1, 0)).diff() == 1
        in_front = ids.roll(1, 1)[starts].tolist()
        if len(in_front) != len(grid):  # no markers between crops: a hand-made batch
            return None
        shown: list[list[regions.Region]] = []
        tiles: list[tuple[int, int]] = []
        for token in in_front:
            if token in self.tile_markers:
                tiles.append(self.tile_markers[token])
                continue
            shown.append([*(regions.tiled(*tiles[-1]) if tiles else []), regions.WHOLE])
            tiles = []
        return regions.views(shown, grid.device)

    def example_image(self, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, pixels = super().example_image(height, width, generator)
        values = pixels["pixel_values"][None]
        mask = torch.ones_like(values[:, :, 0], dtype=torch.long)
        if height != width:  # the lower quarter of the image is padding
            rows = mask.shape[-2] // 4
            mask[..., -rows:, :] = 0
            values[..., -rows:, :] = torch.randn(1, generator=generator)
        return tokens, {"pixel_values": values, "pixel_attention_mask": mask}

    def example_pixels(self, images: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        most, blank = max(map(len, images)), next(image for sample in images for image in sample)
        padded = [[*sample, *[_zeros(blank)] * (most - len(sample))] for sample in images]
        return {
            name: torch.cat([torch.cat([image[name] for image in sample], 1) for sample in padded]) for name in blank
        }


def _zeros(image: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in image.items()}
