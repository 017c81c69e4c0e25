"""GlimpsePrune's keep rule: a threshold, then a cap, then a floor, then anchors."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.core.segments import rank_in_group, segment_count
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.checks import check_choice, check_count, check_fraction
from glimpse_lightning.policies.keep_ratio import KeepRatio
from glimpse_lightning.runtime.errors import GlimpseError

Anchor = Literal["tl", "tr", "bl", "br"]


class Threshold(Policy):
    """Keeps the tokens that score above a threshold, in the reference's order (GlimpsePrune, arXiv 2508.01548).

    1. keep = score > threshold, strictly; 2. where more than ``max_ratio`` of a group is kept, only its best
    ``floor(max_ratio * N)`` stay; 3. where fewer than ``min_tokens`` are left, the best ``min_tokens`` are added, even
    beyond the cap; 4. anchors are added.

    Args:
        threshold: value that a score has to exceed.
        scale: ``"sigmoid"``: sigmoid(score) is compared (learned scorers); ``"raw"``: the score itself.
        max_ratio: cap, as a share of the tokens that the group had before any pruning; ``None``: no cap.
        min_tokens: floor, in tokens.
        anchors: grid corners that are always kept (top/bottom left/right); with ``per="sample"`` only where a
            sample has one image.
        per: group that cap and floor are counted over.
    """

    def __init__(
        self,
        threshold: float = 0.5,
        scale: Literal["sigmoid", "raw"] = "sigmoid",
        max_ratio: float | None = None,
        min_tokens: int = 1,
        anchors: Sequence[Anchor] = (),
        per: Literal["sample", "item"] = "sample",
    ) -> None:
        check_choice("scale", scale, ("sigmoid", "raw"))
        check_choice("per", per, ("sample", "item"))
        check_count("min_tokens", min_tokens)
        if max_ratio is not None:
            check_fraction("max_ratio", max_ratio)
        if scale == "sigmoid":
            check_fraction("threshold", threshold)
        for anchor in anchors:
            check_choice("anchors", anchor, ("tl", "tr", "bl", "br"))
        self.threshold = threshold
        self.scale = scale
        self.max_ratio = max_ratio
        self.min_tokens = min_tokens
        self.anchors = anchors
        self.per = per

    @property
    def may_keep_nothing(self) -> bool:
        return self.min_tokens == 0 and not self.anchors

    def with_budget(self, retention: float | None = None, threshold: float | None = None) -> Policy:
        """A copy with another ``threshold``, its cap included; or the best ``retention`` of the tokens in its place."""
        if threshold is None:
            assert retention is not None
            return KeepRatio(retention, self.per, max(1, self.min_tokens))
        if retention is not None:
            raise GlimpseError("Expected either `retention` or `threshold`, but got both.")
        if self.scale == "sigmoid":
            check_fraction("threshold", threshold)
        other = copy(self)
        other.threshold = threshold
        return other

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, total = tokens.groups(self.per)
        scores = scores.float()
        keep = (scores.sigmoid() if self.scale == "sigmoid" else scores) > self.threshold
        # By score, not by sigmoid(score): the same order, but it does not saturate. What is kept before the anchors is
        # always the best of its group, so cap and floor are conditions on the rank alone.
        rank = rank_in_group(scores, group, len(total))
        if self.max_ratio is not None:
            # The reference divides to ask whether the cap applies, and multiplies to apply it: at 29 of 100 and a cap
            # of 0.29 these differ by rounding.
            capped = segment_count(group, len(total), keep) / total.double() > self.max_ratio
            keep = keep & ((rank < (self.max_ratio * total.double()).floor()[group]) | ~capped[group])
        keep = keep | (rank < self.min_tokens)
        if self.anchors:
            keep = keep | self._corners(tokens)
        return keep & (scores > -torch.inf)

    def _corners(self, tokens: VisualTokens) -> Tensor:
        if self.per == "sample" and tokens.num_items and int(torch.bincount(tokens.item_sample).max()) > 1:
            raise GlimpseError(
                "Expected one image per sample for a Threshold policy with `anchors`, but got several: whose corners "
                "are meant is undefined (as in the reference). Set `anchors` to () for such samples, or `per` to "
                "'item'."
            )
        _, row, column = tokens.position.unbind(-1)
        _, height, width = tokens.grid[tokens.item].unbind(-1)
        rows = {"t": row == 0, "b": row == height - 1}
        columns = {"l": column == 0, "r": column == width - 1}
        corners = torch.zeros_like(row, dtype=torch.bool)
        for anchor in self.anchors:
            corners = corners | (rows[anchor[0]] & columns[anchor[1]])
        return corners
