"""LLaVA-1.5 (7B, 13B) and other models of its architecture over a CLIP or SigLIP tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from glimpse_lightning.backbones import regions
from glimpse_lightning.backbones.square_grid import SquareGridBackbone
from glimpse_lightning.core.visual_tokens import Views
from glimpse_lightning.runtime.errors import GlimpseError


class LlavaBackbone(SquareGridBackbone):
    """Adapter for ``LlavaForConditionalGeneration``.

    Every image is one square grid (24 x 24 for LLaVA-1.5). ``vision_layers`` count the tower's blocks from 0, so the
    reference's ``selected_visual_layers``, which index CLIP's ``hidden_states``, are one higher. Where the features
    include the class token (``vision_feature_select_strategy: full`` over CLIP), it is kept like text. The stock
    processor crops an oblong image to the square in its middle; this part follows from ``image_sizes`` and the
    processor's settings.
    """

    architectures = ("LlavaForConditionalGeneration",)

    @property
    def vision_blocks(self) -> nn.ModuleList:
        tower = self.model.model.vision_tower
        encoder = getattr(getattr(tower, "vision_model", tower), "encoder", None)
        if encoder is None:
            raise GlimpseError(
                f"Expected a CLIP or SigLIP vision tower, but got {type(tower).__name__}; "
                "write an adapter for it (docs/your_own_model.md)."
            )
        return encoder.layers

    def image_layout(self, inputs: Mapping[str, Any], placeholders: int) -> tuple[Tensor, Tensor]:
        images = len(inputs["pixel_values"])
        per_image = placeholders // images
        grid, prunable = super().image_layout(inputs, placeholders)
        prunable.view(images, per_image)[:, : per_image - self.tokens_per_side**2] = False
        return grid[:images], prunable

    def views(self, inputs: Mapping[str, Any], grid: Tensor) -> Views | None:
        if inputs.get("image_sizes") is None or self.processor is None:
            return None
        settings = self.processor.image_processor
        shown = [[regions.resized_and_cropped(h, w, settings)] for h, w in inputs["image_sizes"].tolist()]
        return regions.views(shown, grid.device)
