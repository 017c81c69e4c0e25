"""InternVL in Hugging Face's own form (InternVL2.5-hf, InternVL3-hf, InternVL3.5-hf)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from glimpse_lightning.backbones import regions
from glimpse_lightning.backbones.square_grid import SquareGridBackbone
from glimpse_lightning.core.visual_tokens import Views


class InternVLBackbone(SquareGridBackbone):
    """Adapter for ``InternVLForConditionalGeneration``.

    Every crop of an image, its thumbnail, and every frame of a video is an item with a square grid (16 x 16 for 448
    pixels). The ``<img>`` and ``</img>`` tokens around them are structure and kept like text. The state of a visual
    token is the mean over the 2 x 2 patches that pixel shuffling merges into it. The tiles of an image follow each
    other, the thumbnail last; their arrangement follows from ``image_sizes``.
    """

    architectures = ("InternVLForConditionalGeneration",)

    @property
    def vision_blocks(self) -> nn.ModuleList:
        return self.model.model.vision_tower.encoder.layer

    @property
    def tokens_per_side(self) -> int:
        return int(self.patches_per_side * self.model.config.downsample_ratio)

    def views(self, inputs: Mapping[str, Any], grid: Tensor) -> Views:
        sizes = inputs.get("image_sizes")
        crops = self._crops_per_image(inputs["input_ids"])
        if sizes is not None and len(sizes) == len(crops):
            known = [_crops(count, *size) for count, size in zip(crops, sizes.tolist(), strict=True)]
        else:
            known = [[regions.WHOLE] if count == 1 else [regions.UNKNOWN] * count for count in crops]
        return regions.views(known, grid.device)

    def _crops_per_image(self, ids: Tensor) -> list[int]:
        """Number of crops of each image, counted from the uninterrupted tokens between its markers."""
        here = F.pad((ids == self.model.config.image_token_id).long(), (1, 1))
        starts, ends = ((here.diff() == step).nonzero()[:, 1] for step in (1, -1))
        return ((ends - starts) // self.tokens_per_side**2).tolist()


def _crops(count: int, height: int, width: int) -> list[regions.Region]:
    if count == 1:
        return [regions.WHOLE]
    return [*regions.tiled(*regions.nearest_tiling(height, width, count - 1)), regions.WHOLE]
