"""Places of visual tokens: numbers within their image or sample, and labels of the parts of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens


def index_in_item(tokens: VisualTokens) -> Tensor:
    """Index of each token among the tokens that its item had before any pruning, in raster order: int64 ``[V]``."""
    height, width = tokens.grid[tokens.item, 1], tokens.grid[tokens.item, 2]
    t, row, column = tokens.position.unbind(-1)
    return (t * height + row) * width + column


def index_in_sample(tokens: VisualTokens) -> Tensor:
    """Index of each token among the tokens that its sample had before any pruning: int64 ``[V]``.

    The index depends on the sample alone, and does not change when an earlier stage drops other tokens.
    """
    size = tokens.grid.prod(-1)
    ends = size.cumsum(0)
    _, per_sample = tokens.groups("sample")
    sample_start = per_sample.cumsum(0) - per_sample
    item_start = ends - size - sample_start[tokens.item_sample]
    return item_start[tokens.item] + index_in_item(tokens)


def crop_label(tokens: VisualTokens, crops: int) -> Tensor:
    """``[V]`` number of the crop that each token lies in: ``crops`` contiguous ranges of raster indices per item.

    If they cannot be equally long, the first ranges have one token more.
    """
    index, size = index_in_item(tokens), tokens.grid.prod(-1)[tokens.item]
    length, longer = size // crops, size % crops
    return tokens.item * crops + torch.maximum(index // (length + 1), (index - longer) // length.clamp(min=1))


def cell_label(tokens: VisualTokens, size: int) -> Tensor:
    """``[V]`` number of the cell that each token lies in: ``size x size`` tokens of one frame of one item."""
    t, row, column = tokens.position.unbind(-1)
    return ((tokens.item * 2**16 + t) * 2**12 + row // size) * 2**12 + column // size


def frame_retention(keep: Tensor, item: Tensor, position: Tensor, grid: Tensor) -> list[Tensor]:
    """Share of visual tokens kept in each frame: for each item ``[t]`` in [0, 1], fp32 (an image is one frame).

    Args:
        keep: true at kept tokens, boolean ``[V]``.
        item: index of each token's item, ``[V]``.
        position: place of each token in its item's grid, ``[V, 3]`` (t, row, column).
        grid: size of each item before pruning, ``[I, 3]`` (t, h, w).
    """
    frames = grid[:, 0].cumsum(0)
    frame = (frames - grid[:, 0])[item] + position[:, 0]
    kept = keep.new_zeros(int(grid[:, 0].sum()), dtype=torch.float32).index_add(0, frame, keep.float())
    share = kept / grid[:, 1:].prod(1).repeat_interleave(grid[:, 0])
    return list(share.split(grid[:, 0].tolist()))
