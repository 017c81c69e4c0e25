"""SparseVLM's keep rule: the best tokens, and cluster centres of the next best."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.core.segments import floor_share, rank_in_group, segment_count
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_fraction, check_positive
from glimpse_lightning.policies.greedy import GroupRows


class Recycled(Budgeted):
    """The budget goes to the best tokens; *on top of it* come the centres of clusters of the next best (SparseVLM).

    As the code of arXiv 2410.04417 has it: of the ``n`` tokens beyond the budget, the best ``m = int(0.3 n) + 1`` are
    clustered by density peaks (DPC-kNN). With distances ``d / sqrt(D)`` of the states at the stage, density
    ``exp(-mean of the k smallest d^2)``, the token itself being one of the ``k``, and the distance to the nearest token
    of higher density (the largest distance, for the densest), those tokens are centres whose product of the two is
    largest: ``k = int(m / 10) + 1`` of them, the same ``k``. The reducer ``MergeNearest(mode: mean, by: distance,
    share: 0.3, per: sample)`` then replaces each centre by the mean of the recycled tokens that are nearest to it.

    The budget does not count the centres, as SparseVLM's lists of 300, 200 and 110 of 576 tokens do not: the first
    keeps 309. All that is logged (retention, FLOPs, length of the cache) counts them.

    Departure: the method's code adds noise of 1e-6 to densities. Here, of equal densities, the earlier token's counts
    as higher. With one or two clusters there are always equal ones.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
        recycle: share of the tokens beyond the budget that is clustered; 0: no token is.
        per_cluster: recycled tokens per centre.
        **keys: arguments of a budget, in place of ``budget``.
    """

    def __init__(
        self, budget: Budget | float | None = None, *, recycle: float = 0.3, per_cluster: int = 10, **keys: Any
    ) -> None:
        super().__init__(budget, **keys)
        check_fraction("recycle", recycle)
        check_positive("per_cluster", per_cluster)
        self.recycle = recycle
        self.per_cluster = per_cluster

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        return self.best(scores, tokens) | self._centres(scores, tokens)

    def merge_targets(self, scores: Tensor, keep: Tensor, tokens: VisualTokens) -> Tensor:
        return keep & ~self.best(scores, tokens)

    def _centres(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        group, budget = self.budget(tokens)
        groups = len(budget)
        rank, present = rank_in_group(scores, group, groups), scores > -torch.inf
        beyond = segment_count(group, groups, present & (rank >= budget[group]))
        count = recycled_count(self.recycle, beyond)
        recycled = present & (rank >= budget[group]) & (rank < (budget + count)[group])
        centres = torch.zeros_like(recycled)
        some = tokens.subset(recycled)
        if len(some):
            clusters = (count // self.per_cluster + 1).minimum(count)
            rows = GroupRows.of(scores[recycled], some, group[recycled], clusters)
            rows.features = rows.padding.pad(some.hidden.detach().float()) / some.hidden.shape[-1] ** 0.5
            centres[recycled] = rows.padding.unpad(torch.cat([self._peaks(part) for part in rows.parts()]))
        return centres

    def _peaks(self, rows: GroupRows) -> Tensor:
        """``[G, L]`` true at each group's ``budget`` cluster centres."""
        length = rows.open.shape[1]
        distance = torch.cdist(rows.features, rows.features, compute_mode="donot_use_mm_for_euclid_dist")
        gap, most = ~rows.open[:, None], min(int(rows.budget.max()), length)
        near = distance.masked_fill(gap, torch.inf).topk(most, -1, largest=False).values
        asked = torch.arange(most, device=gap.device) < rows.budget[:, None, None]
        density = (-near.masked_fill(~asked, 0.0).square().sum(-1) / rows.budget[:, None]).exp()
        density = density.masked_fill(~rows.open, -torch.inf)
        earlier = torch.ones(length, length, dtype=torch.bool, device=gap.device).tril(-1)
        denser = (density[:, None] > density[..., None]) | ((density[:, None] == density[..., None]) & earlier)
        farthest = distance.masked_fill(gap | gap.transpose(1, 2), 0.0).amax((1, 2))[:, None]
        parent = distance.masked_fill(~denser | gap, torch.inf).amin(-1)
        peak = torch.where(parent < torch.inf, parent, farthest) * density
        place = peak.masked_fill(~rows.open, -torch.inf).argsort(dim=1, descending=True, stable=True)
        return (place.argsort(dim=1, stable=True) < rows.budget[:, None]) & rows.open


def recycled_count(share: float, beyond: Tensor) -> Tensor:
    """``[groups]`` how many of the ``beyond [groups]`` tokens without a place are recycled: ``int(share * beyond) + 1``
    as SparseVLM's code counts, at most all, and none where the share is 0.
    """
    return (floor_share(share, beyond) + int(share > 0)).minimum(beyond)
