"""Dropped tokens are merged into the nearest target."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.core.layers import Layer, checked
from glimpse_lightning.core.segments import rank_in_group, segment_count
from glimpse_lightning.core.visual_tokens import VisionKeys, VisualTokens
from glimpse_lightning.policies.checks import check_choice, check_fraction
from glimpse_lightning.policies.recycled import recycled_count
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.reducers.merging import nearest_target
from glimpse_lightning.scorers.base import Requires


class MergeNearest(Reducer):
    """Each dropped token is assigned to the nearest merge target of its item, and each target absorbs those assigned.

    * ``mode="add"``: target + mean of its tokens (VisionZip's contextual tokens, arXiv 2412.04467; **not** the mean
      over the cluster, which other ports of it compute);
    * ``mode="mean"``: mean over the target and its tokens (VScan, arXiv 2505.22654; ToMe, arXiv 2210.09461; with
      ``by="distance"`` and ``share=0.3`` SparseVLM's recycling, arXiv 2410.04417).

    Merge targets are the policy's (``Policy.merge_targets``): all kept tokens, or those kept for this purpose. A
    dropped token whose item has no target is gone. Departure: the states that are merged are the stage's, so before
    layer 0 those after the projector, where VisionZip and ToMe merge in front of it.

    Args:
        mode: see above.
        by: measure of nearness.
        key_layer: compare keys of this block of the vision tower, averaged over heads (a number from 0, or from -1 =
            the last, or a share of its depth); ``None``: the states.
        share: share of each group's dropped tokens and merge targets together, best scores first, that are merged, and
            one token more, as SparseVLM counts (:func:`~.policies.recycled.recycled_count`). The others are gone.
        per: the groups: tokens are merged into targets of the same image (``"item"``), or of the same sample. After the
            policy ``Recycled`` as that policy's ``per``.
    """

    layer_arguments = {"key_layer": "vision"}

    def __init__(
        self,
        mode: Literal["add", "mean"] = "add",
        by: Literal["cosine", "distance"] = "cosine",
        key_layer: Layer | None = None,
        share: float = 1.0,
        per: Literal["item", "sample"] = "item",
    ) -> None:
        check_choice("mode", mode, ("add", "mean"))
        check_choice("by", by, ("cosine", "distance"))
        check_fraction("share", share)
        self.mode = mode
        self.by = by
        self.key_layer: int | None = checked("key_layer", key_layer)
        check_choice("per", per, ("item", "sample"))
        self.share = share
        self.per: Literal["item", "sample"] = per

    @property
    def requires(self) -> Requires:
        return Requires() if self.key_layer is None else Requires(vision_layers=(VisionKeys(self.key_layer),))

    def reduce(self, hidden: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        target = keep if tokens.targets is None else tokens.targets
        features = hidden if self.key_layer is None else tokens.vision[VisionKeys(self.key_layer)]
        group, _ = tokens.groups(self.per)
        nearest = nearest_target(features, target, group, self.by)
        comes = ~keep & (nearest >= 0) & self._good_enough(keep, target, tokens)
        count = segment_count(nearest[comes], len(keep))
        total = torch.zeros_like(hidden, dtype=torch.float32).index_add(0, nearest[comes], hidden[comes].float())
        if self.mode == "add":
            merged = hidden.float() + total / count.clamp(min=1)[:, None]
        else:
            merged = (hidden.float() + total) / (count + 1)[:, None]
        return torch.where((count > 0)[:, None], merged.to(hidden.dtype), hidden)[keep]

    def _good_enough(self, keep: Tensor, target: Tensor, tokens: VisualTokens) -> Tensor:
        if self.share == 1 or tokens.scores is None:
            return torch.ones_like(keep)
        pool = (~keep | target) & (tokens.scores > -torch.inf)
        group, total = tokens.groups(self.per)
        most = recycled_count(self.share, segment_count(group, len(total), pool))
        rank = rank_in_group(torch.where(pool, tokens.scores, -torch.inf), group, len(total))
        return pool & (rank < most[group])
