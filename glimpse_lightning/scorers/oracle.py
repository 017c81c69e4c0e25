"""The upper reference: scores computed from the evidence boxes."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.data.evidence import evidence_mask
from glimpse_lightning.scorers.base import Scorer
from glimpse_lightning.scorers.fixed_ratio import FixedRatio


class Oracle(Scorer):
    """**Order only**: first the tokens that an evidence box of the sample touches, then the others.

    Each of the two parts is in the order of ``FixedRatio``, so samples without boxes get the scores of ``FixedRatio``.
    The boxes mark the place of the answer. The oracle is therefore no method, but a bound on the accuracy of pruning at
    a budget. A warning says that samples have no boxes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._spread = FixedRatio()
        self._warned = False

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Scores ``[V]``: in (0, 1] at evidence, in (-1, 0] elsewhere."""
        spread = self._spread(tokens)
        if any(boxes is None for boxes in tokens.boxes or [None]):
            self._warn()
        return spread + evidence_mask(tokens, tokens.boxes).float() if tokens.boxes else spread

    def _warn(self) -> None:
        """Say once that there are samples without boxes."""
        if not self._warned:
            rank_zero_warn("The oracle has no evidence boxes for some questions; there it chooses as FixedRatio does.")
        self._warned = True
