"""What a reducer is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from glimpse_lightning.core.layers import Layered
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.scorers.base import Requires


class Reducer(Layered, ABC):
    """Removes the dropped tokens, or merges them into kept ones."""

    @property
    def requires(self) -> Requires:
        """Properties of the tokens that the reducer reads, beyond those that every stage has."""
        return Requires()

    @abstractmethod
    def reduce(self, hidden: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        """States of the kept tokens ``[keep.sum(), D]``, in order, from ``hidden [V, D]`` and ``keep [V]``.

        ``tokens.scores`` and ``tokens.targets`` are there.
        """
