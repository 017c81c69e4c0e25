"""What a reducer is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from glimpse_lightning.core.layers import Layered
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.scorers.base import Requires


class Reducer(Layered, ABC):
    """Removes the dropped tokens, or merges them into kept ones.

    Examples:
        >>> class AddMean(gl.Reducer):  # adds the mean of all tokens to each kept one
        ...     def reduce(self, hidden, keep, tokens):
        ...         return hidden[keep] + hidden.mean(0)
        >>> scorer, policy = gl.scorers.AttentionRank(), gl.policies.TopK(64)
        >>> stage = gl.PruneStage(after_layer=1, scorer=scorer, policy=policy, reducer=AddMean())
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
        >>> int(model.prefill(**batch.inputs).keep[0].sum())
        64
    """

    @property
    def requires(self) -> Requires:
        """Properties of the tokens that the reducer reads, beyond those that every stage has."""
        return Requires()

    @abstractmethod
    def reduce(self, hidden: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        """States of the kept tokens ``[keep.sum(), D]``, in order, from ``hidden [V, D]`` and ``keep [V]``.

        ``tokens.scores`` and ``tokens.targets`` are there.
        """
