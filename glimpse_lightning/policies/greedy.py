"""Greedy selection, one token per step for all groups of a ragged batch at once.

Suffixes: ``G`` groups, ``L`` tokens of the longest group, ``D`` feature width. A step costs ``G * L * D``; no matrix of
all pairs of tokens is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.core.segments import Padding
from glimpse_lightning.core.visual_tokens import VisualTokens

PAIRS = 2**24
"""Similarities that may be in memory at once (64 MiB in fp32), where one row of them fits."""


@dataclass
class GroupRows:
    """Tokens group by group.

    Attributes:
        padding: between packed tokens and rows.
        features: ``[G, L, D]`` of unit length; zeros in the gaps.
        scores: ``[G, L]``.
        present: ``[G, L]`` false in the gaps.
        open: ``[G, L]`` tokens that may be chosen: present, with a finite score.
        budget: ``[G]``.
    """

    padding: Padding
    features: Tensor
    scores: Tensor
    present: Tensor
    open: Tensor
    budget: Tensor

    @classmethod
    def of(cls, scores: Tensor, tokens: VisualTokens, group: Tensor, budget: Tensor) -> GroupRows:
        """From packed ``scores [V]`` and ``group [V]``, and ``budget [groups]``; features are the stage's states."""
        padding = Padding(group)
        scores = scores.detach().float()
        scores = torch.where(scores.isnan(), -torch.inf, scores)
        present = padding.pad(torch.ones_like(group, dtype=torch.bool))
        return cls(
            padding=padding,
            features=padding.pad(F.normalize(tokens.hidden.detach().float(), dim=-1).nan_to_num()),
            scores=padding.pad(scores),
            present=present,
            open=padding.pad(scores > -torch.inf),
            budget=padding.pad(budget[group])[:, :1].sum(1),  # every row has a first token, unless there are no rows
        )

    def similarity(self, pick_G: Tensor) -> Tensor:
        """Cosine of every token with its group's ``pick``: ``[G, L]``."""
        chosen = self.features[torch.arange(len(pick_G), device=pick_G.device), pick_G]
        return (self.features @ chosen[..., None])[..., 0]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Cosines ``[G, rows, L]`` of consecutive ``rows`` of each group with all of its tokens, a few at a time."""
        groups, length, _ = self.features.shape
        step = max(1, PAIRS // max(1, groups * length))
        for start in range(0, length, step):
            rows = slice(start, min(start + step, length))
            yield rows, self.features[:, rows] @ self.features.transpose(1, 2)

    def parts(self) -> Iterator[GroupRows]:
        """The same groups, as many at a time as may have all their similarities in memory; at least one."""
        groups, length = self.present.shape
        step = max(1, PAIRS // max(1, length * length))
        for start in range(0, groups, step):
            part = slice(start, start + step)
            yield GroupRows(
                self.padding, self.features[part], self.scores[part], self.present[part], self.open[part],
                self.budget[part],
            )  # fmt: skip


def greedy(rows: GroupRows, gain: Tensor, update: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Choose the token of the largest gain, again and again; of equal gains the earlier token.

    Args:
        gain: ``[G, L]`` of the first step.
        update: from the choice ``[G]`` of a step, and the step's number, to the gains ``[G, L]`` of the next one.

    Returns:
        ``[G, L]`` true at the chosen tokens: as many as each group's budget, or all that are open.
    """
    groups, length = rows.open.shape
    free, chosen = rows.open.clone(), torch.zeros_like(rows.open)
    each = torch.arange(groups, device=free.device)
    steps = min(length, int(rows.budget.max())) if groups else 0
    for step in range(steps):
        pick = gain.masked_fill(~free, -torch.inf).argmax(1)
        takes = (step < rows.budget) & free.any(1)
        chosen[each, pick] |= takes
        free[each, pick] &= ~takes
        if step + 1 < steps:
            gain = update(pick, step)
    return chosen
