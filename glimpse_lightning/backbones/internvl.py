"""InternVL in Hugging Face's own form (InternVL2.5-hf, InternVL3-hf, InternVL3.5-hf)."""

from __future__ import annotations

from torch import nn

from glimpse_lightning.backbones.square_grid import SquareGridBackbone


class InternVLBackbone(SquareGridBackbone):
    """Adapter for ``InternVLForConditionalGeneration``.

    Every crop of an image, its thumbnail, and every frame of a video is an item with a square grid (16 x 16 for 448
    pixels). The ``<img>`` and ``</img>`` tokens around them are structure and kept as text is. The state of a visual
    token is the mean over the 2 x 2 patches that pixel shuffling puts into it.
    """

    architectures = ("InternVLForConditionalGeneration",)

    @property
    def vision_blocks(self) -> nn.ModuleList:
        return self.model.model.vision_tower.encoder.layer

    @property
    def tokens_per_side(self) -> int:
        return int(self.patches_per_side * self.model.config.downsample_ratio)
