"""A batch as it enters the decoder, and where its visual tokens belong.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``V`` visual tokens, ``I`` items, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from glimpse_lightning.core.segments import repeated_segments, segment_count
from glimpse_lightning.core.visual_tokens import Views, VisionTap
from glimpse_lightning.engine.compaction import Compaction


@dataclass(frozen=True)
class TokenLayout:
    """Where the ``V`` visual tokens of a batch belong: see the fields of the same name of ``VisualTokens``.

    Attributes:
        column: ``[V]`` column of the prompt.
    """

    item: Tensor
    sample: Tensor
    position: Tensor
    grid: Tensor
    item_sample: Tensor
    column: Tensor
    views: Views | None = None

    @classmethod
    def of(cls, visual: Tensor, grid: Tensor, views: Views | None = None) -> TokenLayout:
        """From ``visual [B, N]`` and ``grid [I, 3]``."""
        sample, column = visual.nonzero(as_tuple=True)
        sizes = grid.prod(-1)
        ends = sizes.cumsum(0)
        item = torch.repeat_interleave(sizes, output_size=len(sample))
        offset = torch.arange(len(sample), device=grid.device) - (ends - sizes)[item]
        _, height, width = grid[item].unbind(-1)
        plane = height * width
        position = torch.stack([offset // plane, offset % plane // width, offset % width], -1)
        return cls(item, sample, position, grid, sample[ends - sizes], column, views)


@dataclass
class Prompt:
    """A batch as it enters the decoder, padded on the left.

    Attributes:
        embeds: ``[B, N, D]`` with the image features in place.
        mask: ``[B, N]`` false at padding.
        position_ids: ``[..., B, N]`` as the model's rotary embedding takes them.
        visual: ``[B, N]`` true at visual tokens; read row by row they are the packed order of ``VisualTokens``.
        grid: ``[I, 3]`` (t, h, w) of each item after merging, in that order.
        vision: requested states of the vision tower, by tap: ``[V, Dv]``.
        left_padding: how the columns were moved from the caller's layout; ``None`` where they were not.
        layer_features: by decoder layer, ``[V, D]`` that are added to the visual tokens' states after that layer.
        views: the part of an image that each item shows; ``None`` = a whole image each.
    """

    embeds: Tensor
    mask: Tensor
    position_ids: Tensor
    visual: Tensor
    grid: Tensor
    vision: dict[VisionTap, Tensor] = field(default_factory=dict)
    left_padding: Compaction | None = None
    layer_features: dict[int, Tensor] = field(default_factory=dict)
    views: Views | None = None

    def to(self, device: torch.device) -> Prompt:
        """The same prompt on another device."""
        plan = self.left_padding
        return Prompt(
            embeds=self.embeds.to(device),
            mask=self.mask.to(device),
            position_ids=self.position_ids.to(device),
            visual=self.visual.to(device),
            grid=self.grid.to(device),
            vision={tap: value.to(device) for tap, value in self.vision.items()},
            left_padding=None if plan is None else plan.to(device),
            layer_features={layer: value.to(device) for layer, value in self.layer_features.items()},
            views=None if self.views is None else self.views.to(device),
        )

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        features = (self.embeds, *self.vision.values(), *self.layer_features.values())
        return sum(tensor.nbytes for tensor in features)  # all else is small

    def repeated(self, copies: int) -> Prompt:
        """Each sample ``copies`` times in a row."""
        if copies == 1:
            return self
        layout = TokenLayout.of(self.visual, self.grid)
        packed = repeated_segments(self.visual.sum(1), copies)
        items = segment_count(layout.item_sample, len(self.visual))
        plan, batch_axis = self.left_padding, self.position_ids.ndim - 2
        embeds, mask, visual = (x.repeat_interleave(copies, 0) for x in (self.embeds, self.mask, self.visual))
        return Prompt(
            embeds=embeds,
            mask=mask,
            position_ids=self.position_ids.repeat_interleave(copies, batch_axis),
            visual=visual,
            grid=self.grid[repeated_segments(items, copies)],
            vision={tap: value[packed] for tap, value in self.vision.items()},
            left_padding=None if plan is None else plan.repeated(copies),
            layer_features={layer: value[packed] for layer, value in self.layer_features.items()},
            views=None if self.views is None else self.views.repeated(items, copies),
        )

    def moved_left(self, plan: Compaction) -> Prompt:
        """The same prompt with its padding moved to the left by ``plan``."""
        return Prompt(
            embeds=plan.rows(self.embeds),
            mask=plan.columns(self.mask, 0),
            position_ids=plan.columns(self.position_ids, 1),
            visual=plan.columns(self.visual, 0),
            grid=self.grid,
            vision=self.vision,
            left_padding=plan,
            layer_features=self.layer_features,
            views=self.views,
        )
