"""Visual tokens that evidence boxes touch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import Views
from glimpse_lightning.data.sample import Box
from glimpse_lightning.runtime.errors import GlimpseError

ROUNDING = 1e-9
"""Tolerance in cells: an image's edge may lie this far beyond a cell's border by rounding."""


class TokenPlaces(Protocol):
    """Places of visual tokens: ``VisualTokens`` or ``PrefillOutput.tokens``."""

    @property
    def item(self) -> Tensor: ...
    @property
    def item_sample(self) -> Tensor: ...
    @property
    def grid(self) -> Tensor: ...
    @property
    def position(self) -> Tensor: ...
    @property
    def views(self) -> Views | None: ...


def evidence_mask(tokens: TokenPlaces, boxes: Sequence[Sequence[Sequence[Box]] | None]) -> Tensor:
    """``[V]`` true where a token's cell is touched by an evidence box of its image.

    As in the reference: a box touches the cells from ``int(x1 * W)`` to ``min(int(x2 * W), W - 1)`` of a grid of ``W``
    columns, rows alike; in every frame of a video. If an image is cut into tiles, shown a second time as a whole,
    cropped or padded, this rule applies to each item and the part of the image that it shows; padding is never touched.

    Args:
        tokens: visual tokens of the batch.
        boxes: for each sample, a list of boxes for each of its images; ``None`` = no annotation, no token touched.

    Raises:
        GlimpseError: if a sample has more images than lists of boxes, or if the part of an annotated image that an item
            shows is unknown.
    """
    touched = torch.zeros_like(tokens.item, dtype=torch.bool)
    views = tokens.views or Views.whole(len(tokens.grid), tokens.grid.device)
    owners, regions = tokens.item_sample.tolist(), views.region.tolist()
    places = views.within(owners)
    for sample, count in {sample: place + 1 for sample, place in zip(owners, places, strict=True)}.items():
        groups = boxes[sample]
        if groups is not None and count > len(groups):
            raise GlimpseError(
                f"Expected evidence boxes for each of the {count} images of a sample, but got them for "
                f"{len(groups)}. Where images are cut into tiles, it may not be known which belong together: make the "
                "batch with `backbone.collate`, or leave `boxes` out."
            )
    for item, (sample, place) in enumerate(zip(owners, places, strict=True)):
        groups = boxes[sample]
        if groups is None or not groups[place]:
            continue
        here = tokens.item == item
        _, row, column = tokens.position[here].unbind(-1)
        first, last = _touched_cells(groups[place], regions[item], tokens.grid[item])
        cell = torch.stack([column, row], -1)
        touched[here] = ((cell >= first) & (cell <= last)).all(-1).any(0)
    return touched


def _touched_cells(boxes: Sequence[Box], region: Sequence[float], grid: Tensor) -> tuple[Tensor, Tensor]:
    """First and last (column, row) ``[boxes, 1, 2]`` that each box touches in a ``grid [3]`` over ``region``."""
    left, top, right, bottom = region
    if math.isnan(right):
        raise GlimpseError(
            "Evidence boxes cannot be placed on the tiles of an image whose size is not known. Make the batch with "
            "`backbone.collate`, or pass `image_sizes` ([images, 2]: height, width) along with the processor's outputs."
        )
    corners = torch.tensor(boxes, dtype=torch.float64, device=grid.device).view(-1, 1, 2, 2)
    ends = torch.cat([corners, torch.ones_like(corners[:, :, :1])], 2)  # and the image's own lower right corner
    size = corners.new_tensor([right - left, bottom - top])
    first, last, end = ((ends - corners.new_tensor([left, top])) / size * grid[1:].flip(0)).unbind(2)
    return first.floor(), torch.minimum(last.floor(), (end - ROUNDING).ceil() - 1)
