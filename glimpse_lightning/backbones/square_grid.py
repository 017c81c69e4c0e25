"""Base class of families whose vision tower makes the same square grid of tokens of every image or crop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.backbones.placeholders import PlaceholderBackbone
from glimpse_lightning.backbones.visuals import Visuals
from glimpse_lightning.core.visual_tokens import Views, VisionPixels, VisionTap
from glimpse_lightning.data.batch import Batch
from glimpse_lightning.data.sample import Sample


class SquareGridBackbone(PlaceholderBackbone):
    """A family with one fixed square grid per image or crop; each crop is an item of its own.

    The state of a visual token is the mean over the patches that were merged into it (one patch without merging) of a
    vision block's output; a class token is left out.
    """

    @property
    def patches_per_side(self) -> int:
        """Patches along a side of an image."""
        vision = self.model.config.vision_config
        image, patch = (v if isinstance(v, int) else v[0] for v in (vision.image_size, vision.patch_size))
        return image // patch

    @property
    def tokens_per_side(self) -> int:
        """Visual tokens along a side of an image."""
        return self.patches_per_side

    def image_features(self, inputs: Mapping[str, Any]) -> Iterable[Tensor]:
        """The model's own image features, ``[..., D]`` each, in order."""
        return self.model.model.get_image_features(inputs["pixel_values"]).pooler_output

    def visuals(self, inputs: Mapping[str, Any], vision_layers: Sequence[VisionTap]) -> list[Visuals]:
        if inputs.get("pixel_values") is None:
            return []
        with self.capture(vision_layers, partial(self.merge_states, inputs)) as captured:
            features = torch.cat([image.flatten(0, -2) for image in self.image_features(inputs)])
        if VisionPixels() in vision_layers:
            captured |= self.pixels_of_tokens(inputs["pixel_values"])
        grid, prunable = self.image_layout(inputs, len(features))
        views = self.views(inputs, grid)
        return [Visuals(self.model.config.image_token_id, features, grid, prunable, captured, views=views)]

    def pixels_of_tokens(self, pixels: Tensor) -> dict[VisionTap, Tensor]:
        """Pixels ``[V, P]`` of tokens by their tap, from images ``[I, 3, H, W]``; empty where tokens share pixels."""
        side = self.tokens_per_side
        if pixels.ndim != 4 or pixels.shape[-1] % side or pixels.shape[-2] % side:
            return {}
        cells = pixels.unflatten(3, (side, -1)).unflatten(2, (side, -1))  # [I, 3, side, h, side, w]
        return {VisionPixels(): cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)}

    def image_layout(self, inputs: Mapping[str, Any], placeholders: int) -> tuple[Tensor, Tensor]:
        """``(grid [I, 3], prunable [P])`` of the ``P`` = ``placeholders`` features of all images."""
        side, device = self.tokens_per_side, inputs["input_ids"].device
        grid = torch.tensor([[1, side, side]], device=device).expand(placeholders // side**2, 3)
        return grid, torch.ones(placeholders, dtype=torch.bool, device=device)

    def views(self, inputs: Mapping[str, Any], grid: Tensor) -> Views | None:
        """Part of an image that each of the items with ``grid [I, 3]`` shows; ``None`` = a whole image each."""
        return None

    def merge_states(self, inputs: Mapping[str, Any], states: Tensor) -> Tensor:
        """A vision block's output ``[crops, patches, Dv]`` -> ``[V, Dv]``, in the order of the placeholders."""
        side, merge = self.tokens_per_side, self.patches_per_side // self.tokens_per_side
        patches = states[:, -(self.patches_per_side**2) :]  # without a class token, which comes first
        return patches.reshape(-1, side, merge, side, merge, states.shape[-1]).mean((2, 4)).flatten(0, 2)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """As in the base class; ``image_sizes`` ``[images, 2]`` (height, width) are added if the processor returns
        none.
        """
        batch = super().collate(samples)
        sizes = [(image.height, image.width) for sample in samples for image in sample.images]
        if sizes:
            batch.inputs.setdefault("image_sizes", torch.tensor(sizes))
        return batch

    def hf_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Sizes serve to place evidence boxes; these models would pass them to a tower that does not take them.
        return {name: value for name, value in inputs.items() if name != "image_sizes"}

    def example_image(self, height: int, width: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.model.config
        vision = config.vision_config
        size = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
        tokens = torch.full((self.tokens_per_side**2,), config.image_token_id)
        return tokens, {"pixel_values": torch.randn(1, vision.num_channels, size, size, generator=generator)}
