"""Gemma 3 with vision (4B, 12B, 27B)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from glimpse_lightning.backbones.square_grid import SquareGridBackbone
from glimpse_lightning.engine.taps import AttentionTap


class Gemma3Backbone(SquareGridBackbone):
    """Adapter for ``Gemma3ForConditionalGeneration``.

    Every image, and every crop of pan-and-scan, is an item with a square grid (16 x 16 tokens of 4 x 4 patches). The
    tokens of an image attend to each other in both directions, also after pruning. Sliding windows count kept tokens,
    as in decoding.
    """

    architectures = ("Gemma3ForConditionalGeneration",)
    bidirectional_images = True

    @property
    def vision_blocks(self) -> nn.ModuleList:
        tower = self.model.model.vision_tower
        return getattr(tower, "vision_model", tower).encoder.layers

    @property
    def tokens_per_side(self) -> int:
        return math.isqrt(self.model.config.mm_tokens_per_image)

    def position_embeddings(self, hidden: Tensor, position_ids: Tensor) -> dict[str, Any]:
        """Position embeddings by kind of layer, because layers with a sliding window have another rotary base."""
        rotary: Any = self.decoder.rotary_emb
        return {kind: rotary(hidden, position_ids, kind) for kind in set(self.text_config.layer_types)}

    def run_layer(
        self, layer: int, hidden: Tensor, mask: Any, positions: Any, cache: Cache | None, tap: AttentionTap | None
    ) -> Tensor:
        return super().run_layer(layer, hidden, mask, positions[self.layer_type(layer)], cache, tap)

    def hf_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Without the token types, Hugging Face's attention is causal inside images, too.
        types = (inputs["input_ids"] == self.model.config.image_token_id).long()
        return {**super().hf_inputs(inputs), "token_type_ids": types}
