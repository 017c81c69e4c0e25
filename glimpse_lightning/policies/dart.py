"""DART's keep rule: few pivots, and the tokens least like them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.segments import rank_in_group
from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budget import Budget
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.checks import check_count
from glimpse_lightning.policies.greedy import GroupRows
from glimpse_lightning.scorers.base import Requires


class DART(Budgeted):
    """Duplication-aware reduction (DART, arXiv 2502.11494): scores are not used, except that -inf is never kept.

    Pivots are the image tokens and the text tokens with the largest L1 norm of decoder keys (of the stage's last layer,
    heads side by side, after RoPE). Image pivots are kept; then each pivot in turn, image pivots first, keeps an equal
    share of the rest of the budget, rounded up, until the budget is full: the tokens left whose states at the stage
    have the least cosine with the pivot's. Late pivots may so get fewer tokens, or none.

    This is AngelSlim's code. VisionSelector's port of DART keeps the pivots on top of its budget. Departure: a sample
    with fewer pivots shares among those.

    Args:
        budget: number of tokens to keep, or a ratio; see :class:`~glimpse_lightning.policies.budgeted.Budgeted`;
            text pivots are the sample's.
        image_pivots, text_pivots: number of each.
        **keys: arguments of a budget, in place of ``budget``.
    """

    def __init__(
        self, budget: Budget | float | None = None, *, image_pivots: int = 4, text_pivots: int = 4, **keys: Any
    ) -> None:
        super().__init__(budget, **keys)
        check_count("image_pivots", image_pivots)
        check_count("text_pivots", text_pivots)
        if not image_pivots + text_pivots:
            raise ValueError("Expected at least one of `image_pivots` and `text_pivots`, but got 0 and 0.")
        self.image_pivots = image_pivots
        self.text_pivots = text_pivots

    @property
    def requires(self) -> Requires:
        return Requires(text=True, keys=True)

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        assert tokens.keys is not None
        group, budget = self.budget(tokens)
        rows = GroupRows.of(scores, tokens, group, budget)
        groups = len(rows.open)
        if not groups:
            return torch.zeros_like(scores, dtype=torch.bool)
        norm = rows.padding.pad(tokens.keys.float().abs().sum(-1)).masked_fill(~rows.open, -torch.inf)
        best = norm.argsort(dim=1, descending=True, stable=True)[:, : self.image_pivots]
        each = torch.arange(groups, device=best.device)[:, None]
        is_pivot = rows.open[each, best] & (torch.arange(best.shape[1], device=best.device) < rows.budget[:, None])
        chosen = torch.zeros_like(rows.open)
        chosen[each, best] = is_pivot
        text, is_text = self._text_pivots(tokens, rows.padding.pad(tokens.sample)[:, 0])
        pivots = torch.cat([rows.features[each, best], text], 1)
        active = torch.cat([is_pivot, is_text], 1)
        return rows.padding.unpad(_share_out(rows, chosen, pivots, active))

    def _text_pivots(self, tokens: VisualTokens, sample_G: Tensor) -> tuple[Tensor, Tensor]:
        """``([G, text_pivots, D], [G, text_pivots])`` unit states of each group's text pivots, and which exist."""
        assert tokens.text is not None and tokens.text_sample is not None and tokens.text_keys is not None
        norm = tokens.text_keys.float().abs().sum(-1)
        rank = rank_in_group(norm, tokens.text_sample, tokens.num_samples)
        mine = rank < self.text_pivots
        unit = F.normalize(tokens.text.float(), dim=-1)
        table = unit.new_zeros(tokens.num_samples, self.text_pivots, unit.shape[-1])
        there = torch.zeros(table.shape[:2], dtype=torch.bool, device=unit.device)
        where = tokens.text_sample[mine], rank[mine]
        table[where], there[where] = unit[mine], True
        return table[sample_G], there[sample_G]


def _share_out(rows: GroupRows, chosen: Tensor, pivots_GPD: Tensor, active_GP: Tensor) -> Tensor:
    """Each active pivot in turn adds its share of the budget to ``chosen [G, L]``."""
    rest, count = rows.budget - chosen.sum(1), active_GP.sum(1).clamp(min=1)
    each = (rest + count - 1) // count
    for number in range(pivots_GPD.shape[1]):
        share = each.minimum(rows.budget - chosen.sum(1)) * active_GP[:, number]
        cosine = (rows.features @ pivots_GPD[:, number, :, None])[..., 0]
        cosine = cosine.masked_fill(~rows.open | chosen, torch.inf)
        place = cosine.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        chosen = chosen | ((place < share[:, None]) & (cosine < torch.inf))
    return chosen
