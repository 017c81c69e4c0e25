"""The default reducer."""

from __future__ import annotations

from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.reducers.base import Reducer


class Drop(Reducer):
    """Dropped tokens are gone."""

    def reduce(self, hidden: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        return hidden[keep]
