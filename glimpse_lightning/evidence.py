"""Which visual tokens evidence boxes touch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from glimpse_lightning.data.sample import Box
from glimpse_lightning.errors import GlimpseError


class TokenPlaces(Protocol):
    """Where visual tokens belong; ``VisualTokens`` and ``PrefillOutput.tokens`` both say it."""

    @property
    def item(self) -> Tensor: ...
    @property
    def item_sample(self) -> Tensor: ...
    @property
    def grid(self) -> Tensor: ...
    @property
    def position(self) -> Tensor: ...


def evidence_mask(tokens: TokenPlaces, boxes: Sequence[Sequence[Sequence[Box]] | None]) -> Tensor:
    """``[V]`` true where a token's cell is touched by an evidence box of its image.

    As in the reference: a box touches the cells from ``int(x1 * W)`` to ``min(int(x2 * W), W - 1)`` of a grid of ``W``
    columns, rows alike; in every frame of a video.

    Args:
        tokens: of the batch.
        boxes: for each sample, a list of boxes for each of its images; ``None`` = no annotation, no token touched.

    Raises:
        GlimpseError: where the backbone cuts one image into several items (tiles, crops): which part of the image each
            shows is not known here, so its boxes cannot be placed.
    """
    touched = torch.zeros_like(tokens.item, dtype=torch.bool)
    seen: dict[int, int] = {}
    owners = tokens.item_sample.tolist()
    for sample, groups in enumerate(boxes):
        if groups is not None and owners.count(sample) > len(groups):
            raise GlimpseError(
                f"Expected one visual item per annotated image, but a sample with {len(groups)} has "
                f"{owners.count(sample)} items: this backbone cuts images into tiles, and evidence boxes cannot be "
                "placed on tiles yet. Leave `boxes` out, or choose a backbone with one grid per image."
            )
    for item, sample in enumerate(owners):
        place = seen[sample] = seen.get(sample, -1) + 1
        groups = boxes[sample]
        if groups is None or place >= len(groups) or not groups[place]:
            continue
        mine = tokens.item == item
        corners = torch.tensor(groups[place], dtype=torch.float64, device=touched.device)  # [boxes, 4]
        _, height, width = tokens.grid[item].tolist()
        size = torch.tensor([width, height, width, height], device=corners.device)
        x1, y1, x2, y2 = (corners * size).long().unsqueeze(1).unbind(-1)  # [boxes, 1] each
        _, row, column = tokens.position[mine].unbind(-1)
        touched[mine] = ((row >= y1) & (row <= y2) & (column >= x1) & (column <= x2)).any(0)
    return touched
