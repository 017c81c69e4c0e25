"""DivPrune's keep rule: the most diverse set."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.core.visual_tokens import VisualTokens
from glimpse_lightning.policies.budgeted import Budgeted
from glimpse_lightning.policies.greedy import GroupRows, greedy


class MaxMin(Budgeted):
    """Greedy max-min diversity (DivPrune, arXiv 2503.02175): scores are not used, except that -inf is never kept.

    With ``d_ij = 1 - cos(x_i, x_j)`` over the states at the stage: first ``argmax_i min_(j != i) d_ij``, then again and
    again ``argmax_i min_(j in chosen) d_ij``.

    Departures: a ratio is rounded down, where the paper's code takes the nearest number of tokens; kept tokens stay in
    the order of the prompt (the paper's code left them in the order of choice, and its author reports other figures for
    sorted ones); all images of a sample share one set unless ``per: item``.
    Arguments: see :class:`~glimpse_lightning.policies.budgeted.Budgeted`.
    """

    def select(self, scores: Tensor, tokens: VisualTokens) -> Tensor:
        rows = GroupRows.of(scores, tokens, *self.budget(tokens))
        nearest = torch.full_like(rows.scores, -torch.inf)

        def update(pick: Tensor, step: int) -> Tensor:
            nonlocal nearest
            nearest = torch.maximum(nearest, rows.similarity(pick))
            return -nearest

        return rows.padding.unpad(greedy(rows, -_nearest_other(rows), update))


def _nearest_other(rows: GroupRows) -> Tensor:
    """``[G, L]`` largest cosine of each token with another one of its group that may be kept."""
    nearest = torch.full_like(rows.scores, -torch.inf)
    for block, cosine in rows.blocks():
        cosine = cosine.masked_fill(~rows.open[:, None], -torch.inf)
        cosine.diagonal(offset=block.start, dim1=1, dim2=2).fill_(-torch.inf)
        nearest[:, block] = cosine.amax(-1)
    return nearest
