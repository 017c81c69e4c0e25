"""One token per cell of the grid, as spatial pooling keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.core.segments import rank_in_group
from glimpse_lightning.core.token_places import cell_label
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_positive


class GridCells(Policy):
    """Keeps the first token of every ``size x size`` cell of an image; scores are not used, except -inf.

    A baseline; with the reducer ``PoolCells`` it is average pooling. At the right and lower border cells may be
    smaller.

    Args:
        size: side of a cell, in tokens.
    """

    def __init__(self, size: int = 2) -> None:
        check_positive("size", size, " token")
        self.size = size

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        cells, cell = cell_label(tokens, self.size).unique(return_inverse=True)
        present = scores > -torch.inf
        return (rank_in_group(present.long(), cell, len(cells)) == 0) & present
