"""What a reducer is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from glimpse_lightning.visual_tokens import VisualTokens


class Reducer(ABC):
    """Decides what becomes of the dropped tokens: gone, or merged into kept ones."""

    @abstractmethod
    def reduce(self, hidden: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        """States of the kept tokens ``[keep.sum(), D]``, in order, from ``hidden [V, D]`` and ``keep [V]``."""
