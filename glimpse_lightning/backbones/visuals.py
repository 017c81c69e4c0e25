"""Visual inputs of a batch after the vision tower."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import Views, VisionTap


@dataclass
class Visuals:
    """The images (or the videos) of a batch, in the order of their placeholders.

    Attributes:
        token_id: id of the placeholder token.
        features: ``[P, D]`` embeddings that replace the placeholders.
        grid: ``[I, 3]`` (t, h, w) of each item; ``t * h * w`` summed over items is ``V``, the prunable tokens.
        prunable: ``[P]`` false at structure tokens (row ends), which are kept like text.
        states: outputs of vision blocks, by tap: ``[V, Dv]``.
        layer_features: features added after a decoder layer, by layer: ``[V, D]``.
        views: the part of an image that each item shows; ``None`` = a whole image (or video) each.
    """

    token_id: int
    features: Tensor
    grid: Tensor
    prunable: Tensor
    states: dict[VisionTap, Tensor] = field(default_factory=dict)
    layer_features: dict[int, Tensor] = field(default_factory=dict)
    views: Views | None = None

    def all_kept(self) -> Visuals:
        """A copy whose tokens pruners do not see, so that all are kept."""
        states = {layer: state[:0] for layer, state in self.states.items()}
        return Visuals(self.token_id, self.features, self.grid[:0], torch.zeros_like(self.prunable), states)

    def joined(self, more: Visuals) -> Visuals:
        """These images and those of ``more``, of the same kind of placeholder, after them."""
        views = None
        if self.views is not None or more.views is not None:
            first, second = self._views(), more._views()
            count = int(first.image.max()) + 1 if len(first.image) else 0
            image = torch.cat([first.image, second.image + count])
            views = Views(image, torch.cat([first.region, second.region]))

        def both(one: dict[Any, Tensor], other: dict[Any, Tensor]) -> dict[Any, Tensor]:
            return {key: torch.cat([value, other[key]]) for key, value in one.items()}

        return Visuals(
            self.token_id,
            torch.cat([self.features, more.features]),
            torch.cat([self.grid, more.grid]),
            torch.cat([self.prunable, more.prunable]),
            both(self.states, more.states),
            both(self.layer_features, more.layer_features),
            views,
        )

    def _views(self) -> Views:
        return Views.whole(len(self.grid), self.grid.device) if self.views is None else self.views

    def taken(self, items: Tensor) -> Visuals:
        """A copy with the given ``items [I]``, in that order and with repetitions; for whole images without structure
        tokens.
        """
        sizes = self.grid.prod(-1)
        ends, counts = sizes.cumsum(0), sizes[items]
        within = torch.arange(int(counts.sum()), device=counts.device)
        within -= (counts.cumsum(0) - counts).repeat_interleave(counts)
        tokens = (ends - sizes)[items].repeat_interleave(counts) + within
        return Visuals(
            self.token_id,
            self.features[tokens],
            self.grid[items],
            self.prunable[tokens],
            {layer: state[tokens] for layer, state in self.states.items()},
            {layer: added[tokens] for layer, added in self.layer_features.items()},
        )
