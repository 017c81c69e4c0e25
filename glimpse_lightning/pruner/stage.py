"""PruneStage: where in the model visual tokens are scored and dropped."""

from __future__ import annotations

from typing import Literal

from torch import nn

from glimpse_lightning.core.layers import Layer, Layered, checked
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.reducers.drop import Drop
from glimpse_lightning.scorers.base import Requires, Scorer

EarlyKV = Literal["prune", "keep"]
Positions = Literal["keep", "renumber"]


class PruneStage(Layered, nn.Module):
    """*Where* (before layer 0, or after a decoder layer) + scorer + policy + reducer.

    Args:
        after_layer: 0-based index of the last layer that runs on all tokens; -1 = before layer 0. At or beyond the
            model's last layer only the KV cache that decoding reads is pruned. A number between 0 and 1 is the share of
            the layers that run on all tokens (``Layered.number_layers``): 0.25 is layer 7 of 32, or 1 of 8.
        scorer: source of one score for each visual token.
        policy: rule that turns scores into a keep mask.
        reducer: treatment of the dropped tokens; by default they are removed (``Drop``).
        early_kv: treatment of the KV cache of layers up to ``after_layer``. ``prune``: dropped tokens are removed.
            ``keep``: this stage leaves it unchanged, so cache lengths differ by layer (FastV, PyramidDrop, SparseVLM).
        positions: position ids of the kept tokens in later layers. ``keep``: they stay the original ones, and decoding
            goes on at the original next position. ``renumber``: the gaps are closed
            (:meth:`~.prompt_cache.PromptColumns.renumbered`), and in those layers decoding goes on at the new next
            position (PyramidDrop's and VScan's LLaVA).

    Examples:
        >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.KeepRatio(0.1))
        >>> type(stage.reducer).__name__
        'Drop'
    """

    layer_arguments = {"after_layer": "decoder"}

    def __init__(
        self,
        after_layer: Layer,
        scorer: Scorer,
        policy: Policy,
        reducer: Reducer | None = None,
        early_kv: EarlyKV = "prune",
        positions: Positions = "keep",
    ) -> None:
        super().__init__()
        check_choice("early_kv", early_kv, ("prune", "keep"))
        check_choice("positions", positions, ("keep", "renumber"))
        self.after_layer: int = checked("after_layer", after_layer)
        if self.after_layer < -1:
            raise ValueError(f"Expected `after_layer` to be -1 (before layer 0) or more, but got {after_layer}.")
        self.scorer = scorer
        self.policy = policy
        self.reducer = Drop() if reducer is None else reducer
        self.early_kv: EarlyKV = early_kv
        self.positions: Positions = positions

    @property
    def requires(self) -> Requires:
        """The inputs that the stage's parts require; valid once the scorer is built."""
        return self.scorer.requires | self.policy.requires | self.reducer.requires
