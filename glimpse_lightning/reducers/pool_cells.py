"""Average pooling over cells of the grid."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.core.segments import segment_count
from glimpse_lightning.core.token_places import cell_label
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.checks import check_positive
from glimpse_lightning.reducers.base import Reducer


class PoolCells(Reducer):
    """Every kept token becomes the mean over its ``size x size`` cell: with ``GridCells``, spatial average pooling.

    Args:
        size: side of a cell, in tokens.
    """

    def __init__(self, size: int = 2) -> None:
        check_positive("size", size, " token")
        self.size = size

    def reduce(self, hidden: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        cells, cell = cell_label(tokens, self.size).unique(return_inverse=True)
        total = torch.zeros(len(cells), hidden.shape[-1], device=hidden.device).index_add(0, cell, hidden.float())
        mean = total / segment_count(cell, len(cells))[:, None]
        return mean.to(hidden.dtype)[cell[keep]]
