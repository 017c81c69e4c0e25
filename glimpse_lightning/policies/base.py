"""What a prune policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from glimpse_lightning.core.layers import Layered
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.scorers.base import Requires


class Policy(Layered, ABC):
    """Turns scores into a keep mask: a pure, deterministic function of its arguments.

    Ties are broken by position: of equal scores the earlier token is kept. A score of ``-inf`` is never kept.

    Examples:
        >>> class AboveMedian(gl.Policy):  # keeps tokens that score above the median of the batch
        ...     def select(self, scores, tokens):
        ...         return scores > scores.median()
        >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=AboveMedian())
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> batch = model.backbone.collate([gl.GlyphVQA("test")[0]])
        >>> int(model.prefill(**batch.inputs).keep[0].sum())
        128
    """

    @property
    def may_keep_nothing(self) -> bool:
        """Whether a group of tokens can lose all of them; our recipes refuse that, imported pruners may do it."""
        return False

    @property
    def requires(self) -> Requires:
        """Properties of the tokens that the policy reads, beyond those that every stage has."""
        return Requires()

    def merge_targets(self, scores: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        """Boolean mask ``[V]`` of those kept tokens that a merging reducer may merge dropped ones into: all of them.

        Some methods keep tokens for this purpose only; arguments are those of :meth:`select` and its result.
        """
        return keep

    def with_budget(self, retention: float | None = None, threshold: float | None = None) -> Policy:
        """A policy like this one with another budget, for a call that asks for one.

        Args:
            retention: share of the tokens before any pruning to keep.
            threshold: value that a score has to exceed.

        Raises:
            GlimpseError: where the policy has no such budget.
            ValueError: for a value out of range.
        """
        asked, value = ("retention", retention) if threshold is None else ("threshold", threshold)
        raise GlimpseError(
            f"{type(self).__name__} decides by itself how much is kept, so `{asked}` of {value} cannot be set. Use a "
            "policy that has one: KeepRatio, MaxMin, ... have a retention, Threshold has both."
        )

    @abstractmethod
    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        """Boolean mask ``[V]`` of the tokens to keep, from ``scores [V]`` (higher = keep).

        The budget is per sample unless the policy says otherwise; ratios are ratios of the tokens a group had before
        any stage dropped one (``tokens.groups()``).
        """
