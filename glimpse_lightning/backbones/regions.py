"""Part of an image that each crop shows after cutting, padding and resizing: regions of ``Views``.

Regions are (x1, y1, x2, y2) relative to the image's width and height, in float64; beyond [0, 1] they show padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from glimpse_lightning.core.visual_tokens import Views

Region = tuple[float, float, float, float]

WHOLE: Region = (0.0, 0.0, 1.0, 1.0)
UNKNOWN: Region = (math.nan, math.nan, math.nan, math.nan)


def tiled(rows: int, columns: int) -> list[Region]:
    """The tiles of an image that was resized to ``rows x columns`` tiles, row by row."""
    return [
        (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def nearest_tiling(height: int, width: int, tiles: int) -> tuple[int, int]:
    """``(rows, columns)`` of the arrangement of ``tiles`` whose shape is nearest to the image's."""
    choices = [(tiles // columns, columns) for columns in range(1, tiles + 1) if tiles % columns == 0]
    return min(choices, key=lambda shape: abs(width / height - shape[1] / shape[0]))


def padded_square(height: int, width: int) -> Region:
    """The square around an image that was padded to its longer side, the image in the middle."""
    side = max(height, width)
    return fitted(height, width, side, side)


def fitted(height: int, width: int, canvas_height: int, canvas_width: int) -> Region:
    """The canvas around an image that was resized to fit into it with its aspect ratio and centred."""
    down, across = canvas_height / height, canvas_width / width
    new_height = canvas_height if down <= across else min(math.ceil(height * across), canvas_height)
    new_width = canvas_width if across < down else min(math.ceil(width * down), canvas_width)
    top, left = (canvas_height - new_height) // 2, (canvas_width - new_width) // 2
    return (
        -left / new_width,
        -top / new_height,
        (canvas_width - left) / new_width,
        (canvas_height - top) / new_height,
    )


def within(outer: Region, part: Region) -> Region:
    """``part``, given relative to ``outer``, in the coordinates of ``outer``."""
    left, top, right, bottom = outer
    width, height = right - left, bottom - top
    return (left + part[0] * width, top + part[1] * height, left + part[2] * width, top + part[3] * height)


def share_seen(regions: Sequence[Region]) -> float:
    """The share of an image's area that at least one of ``regions`` shows; NaN if one of them is not known."""
    if any(math.isnan(edge) for region in regions for edge in region):
        return math.nan
    inside = [tuple(min(max(edge, 0.0), 1.0) for edge in region) for region in regions]
    columns, rows = (sorted({edge for region in inside for edge in region[axis::2]}) for axis in (0, 1))
    return sum(
        (right - left) * (bottom - top)
        for left, right in pairwise(columns)
        for top, bottom in pairwise(rows)
        if any(x1 <= left and right <= x2 and y1 <= top and bottom <= y2 for x1, y1, x2, y2 in inside)
    )


def resized_and_cropped(height: int, width: int, settings: Any) -> Region:
    """The region of an image that an image processor of CLIP's kind keeps.

    Args:
        height, width: size of the image in pixels.
        settings: image processor, of which ``do_pad``, ``do_resize``, ``size``, ``do_center_crop`` and ``crop_size``
            are read.
    """
    if getattr(settings, "do_pad", False):
        return padded_square(height, width)
    size, crop = settings.size or {}, settings.crop_size or {}
    if getattr(settings, "do_resize", False):
        shortest = size.get("shortest_edge")
        if not shortest:
            return WHOLE  # resized to a fixed size
        short, long = sorted((height, width))
        scaled = int(shortest * long / short)
        height, width = (shortest, scaled) if height <= width else (scaled, shortest)
    if not getattr(settings, "do_center_crop", False):
        return WHOLE
    across, down = crop.get("width") or width, crop.get("height") or height
    left, top = (width - across) // 2, (height - down) // 2
    return (left / width, top / height, (left + across) / width, (top + down) / height)


def views(images: Sequence[Sequence[Region]], device: torch.device) -> Views:
    """``Views`` of items, given as the regions of each image's crops."""
    number = [index for index, crops in enumerate(images) for _ in crops]
    regions = torch.tensor([region for crops in images for region in crops], dtype=torch.float64, device=device)
    return Views(torch.tensor(number, dtype=torch.long, device=device), regions.view(-1, 4))
