"""SparseVLM's keep rule: the best tokens, and cluster centres of the next best."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from glimpse_lightning.policies.base import Policy
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.checks import check_count, check_fraction
from glimpse_lightning.policies.greedy import Rows
from glimpse_lightning.segments import rank_in_group, segment_count
from glimpse_lightning.visual_tokens import VisualTokens


class Recycled(Budget, Policy):
    """The budget goes to the best tokens; *on top of it* come the centres of clusters of the next best (SparseVLM).

    arXiv 2410.04417: of the tokens beyond the budget, the best ``recycle`` (30 %) are clustered by density peaks
    (DPC-kNN): with distances ``d / sqrt(D)`` of the states at the stage, density ``exp(-mean of the k smallest d^2)``,
    and the distance to the nearest token of higher density (the largest distance, for the densest), the ``n // 10 + 1``
    tokens whose product of the two is largest are centres. The reducer ``MergeNearest(mode: mean, by: distance,
    share: 0.3)`` then merges the recycled ones into them.

    Mind that the budget does not count the centres (SparseVLM's lists do not either: 204 tokens, not 191): the
    retention that is logged does. Departure: the reference adds noise to densities, here of equal tokens the earlier
    comes first.

    Args:
        ratio, count, per, min_tokens, flops: see :class:`~glimpse_lightning.policies.budget.Budget`.
        recycle: share of the tokens beyond the budget.
        per_cluster: recycled tokens per centre.
        neighbours: ``k`` of the density.
    """

    def __init__(
        self,
        ratio: float | None = None,
        count: int | None = None,
        recycle: float = 0.3,
        per_cluster: int = 10,
        neighbours: int = 5,
        per: Literal["sample", "item"] = "sample",
        min_tokens: int = 1,
        flops: float | None = None,
    ) -> None:
        super().__init__(ratio, count, per, min_tokens, flops)
        check_fraction("recycle", recycle)
        for name, value in {"per_cluster": per_cluster, "neighbours": neighbours}.items():
            check_count(name, value)
            if value == 0:
                raise ValueError(f"Expected argument `{name}` to be at least 1, but got 0.")
        self.recycle = recycle
        self.per_cluster = per_cluster
        self.neighbours = neighbours

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        return (self._best(scores, tokens) & (scores > -torch.inf)) | self._centres(scores, tokens)

    def merge_targets(self, scores: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        return keep & ~self._best(scores, tokens)

    def _best(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        return rank_in_group(scores, group, len(budget)) < budget[group]

    def _centres(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        groups = len(budget)
        rank, present = rank_in_group(scores, group, groups), scores > -torch.inf
        beyond = segment_count(group, groups, present & (rank >= budget[group]))
        count = (self.recycle * beyond.double() + 1e-9).floor().long()
        recycled = present & (rank >= budget[group]) & (rank < (budget + count)[group])
        centres = torch.zeros_like(recycled)
        some = tokens.subset(recycled)
        if len(some):
            rows = Rows.of(scores[recycled], some, group[recycled], count // self.per_cluster + 1)
            rows.features = rows.padding.pad(some.hidden.detach().float()) / some.hidden.shape[-1] ** 0.5
            centres[recycled] = rows.padding.unpad(torch.cat([self._peaks(part) for part in rows.parts()]))
        return centres

    def _peaks(self, rows: Rows) -> Tensor:
        """``[G, L]`` true at each group's ``budget`` cluster centres."""
        length = rows.open.shape[1]
        distance = torch.cdist(rows.features, rows.features, compute_mode="donot_use_mm_for_euclid_dist")
        gap = ~rows.open[:, None]
        near = distance.masked_fill(gap, torch.inf).topk(min(self.neighbours, length), -1, largest=False).values
        found = near < torch.inf  # a group may have fewer tokens than neighbours are asked for
        density = (-torch.where(found, near, 0.0).square().sum(-1) / found.sum(-1).clamp(min=1)).exp()
        density = density.masked_fill(~rows.open, -torch.inf)
        earlier = torch.ones(length, length, dtype=torch.bool, device=gap.device).tril(-1)
        denser = (density[:, None] > density[..., None]) | ((density[:, None] == density[..., None]) & earlier)
        farthest = distance.masked_fill(gap | gap.transpose(1, 2), 0.0).amax((1, 2))[:, None]
        parent = distance.masked_fill(~denser | gap, torch.inf).amin(-1)
        peak = torch.where(parent < torch.inf, parent, farthest) * density
        place = peak.masked_fill(~rows.open, -torch.inf).argsort(dim=1, descending=True, stable=True)
        return (place.argsort(dim=1, stable=True) < rows.budget[:, None]) & rows.open
