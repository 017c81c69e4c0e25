"""LLaVA-NeXT (LLaVA-1.6): a base image and, for detail, tiles of any resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from glimpse_lightning.backbones import regions
from glimpse_lightning.backbones.llava import LlavaBackbone
from glimpse_lightning.core.visual_tokens import Views


class LlavaNextBackbone(LlavaBackbone):
    """Adapter for ``LlavaNextForConditionalGeneration``.

    An image is two items: the base image's square grid, and the mosaic of its tiles without the tiles' padding. The
    ``image_newline`` token at the end of each row of the mosaic is structure: pruners do not see it, and it is kept
    like text. Vision states are assembled from the tiles in the same way as the features.
    """

    architectures = ("LlavaNextForConditionalGeneration",)

    def image_features(self, inputs: Mapping[str, Any]) -> Sequence[Tensor]:
        return self.model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output

    def tiles(self, inputs: Mapping[str, Any]) -> list[int]:
        """Number of encoded crops of each image, the base image included."""
        config = self.model.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in inputs["image_sizes"]
        ]

    def pack(self, inputs: Mapping[str, Any], crops: Tensor, newline: Tensor | None) -> list[Tensor]:
        """``[crops, tokens, d]`` -> one ``[P_i, d]`` per image: the model's own arrangement of its features."""
        return self.model.model.pack_image_features(
            crops.split(self.tiles(inputs)), inputs["image_sizes"], "default", image_newline=newline
        )[0]

    def image_layout(self, inputs: Mapping[str, Any], placeholders: int) -> tuple[Tensor, Tensor]:
        device, side = inputs["input_ids"].device, self.tokens_per_side
        ones = torch.ones(sum(self.tiles(inputs)), side**2, 1, device=device)
        # The model itself arranges ones for tokens and zeros for newlines, which gives the ends of rows.
        images = [packed[:, 0] > 0.5 for packed in self.pack(inputs, ones, torch.zeros(1, device=device))]
        grid = []
        for prunable in images:
            grid.append([1, side, side])
            mosaic = int(prunable.sum()) - side**2
            if mosaic:
                rows = int((~prunable).sum())
                grid.append([1, rows, mosaic // rows])
        return torch.tensor(grid, device=device), torch.cat(images)

    def hf_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(inputs)

    def views(self, inputs: Mapping[str, Any], grid: Tensor) -> Views:
        sizes = inputs["image_sizes"].tolist()
        shown = [self._shown(h, w, crops) for (h, w), crops in zip(sizes, self.tiles(inputs), strict=True)]
        return regions.views(shown, grid.device)

    def _shown(self, height: int, width: int, crops: int) -> list[regions.Region]:
        """Regions of an image's items: the whole image, and the part of the canvas that the mosaic keeps."""
        if crops == 1:  # one of several images of a sample (LLaVA-OneVision)
            return [regions.padded_square(height, width)]
        tile, side = self.model.config.vision_config.image_size, self.tokens_per_side
        shape = get_anyres_image_grid_shape((height, width), self.model.config.image_grid_pinpoints, tile)
        rows, columns = shape[0] * side, shape[1] * side
        places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(rows, columns, 2)
        mosaic = unpad_image(places.permute(2, 0, 1), (height, width))  # numbered, to find the remaining places
        if not mosaic.numel():  # a very thin image, of which only newlines remain
            return [regions.WHOLE]
        canvas = regions.fitted(height, width, shape[0] * tile, shape[1] * tile)
        first_row, first_column = mosaic[:, 0, 0].tolist()
        last_row, last_column = mosaic[:, -1, -1].tolist()
        ends = (first_column / columns, first_row / rows, (last_column + 1) / columns, (last_row + 1) / rows)
        return [regions.WHOLE, regions.within(canvas, ends)]

    def merge_states(self, inputs: Mapping[str, Any], states: Tensor) -> Tensor:
        return torch.cat(self.pack(inputs, states[:, -(self.tokens_per_side**2) :], None))

    def example_image(self, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        vision = self.model.config.vision_config
        sizes = torch.tensor([[height * vision.patch_size, width * vision.patch_size]])
        inputs = {"image_sizes": sizes, "input_ids": sizes}
        shape = (1, *self.tiles(inputs), vision.num_channels, vision.image_size, vision.image_size)
        _, prunable = self.image_layout(inputs, 0)
        tokens = torch.full((len(prunable),), self.model.config.image_token_id)
        return tokens, {"pixel_values": torch.randn(shape, generator=generator), "image_sizes": sizes}

    def example_pixels(self, images: Sequence[Sequence[Mapping[str, Tensor]]]) -> dict[str, Tensor]:
        most = max(image["pixel_values"].shape[1] for sample in images for image in sample)
        padded = [[_pad_crops(image, most) for image in sample] for sample in images]
        return super().example_pixels(padded)


def _pad_crops(image: Mapping[str, Tensor], crops: int) -> dict[str, Tensor]:
    pixels = image["pixel_values"]
    missing = crops - pixels.shape[1]
    return {**image, "pixel_values": F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, missing))}
