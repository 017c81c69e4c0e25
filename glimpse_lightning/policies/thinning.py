"""Thinning: tokens that are most like another one are dropped, a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.policies.greedy import GroupRows


def thin(rows: GroupRows, free: Tensor, target: Tensor, order: Tensor, step: Tensor, reorder: bool = False) -> Tensor:
    """Drop tokens until each group has ``target [G]`` of its ``free [G, L]`` ones left.

    Free tokens stand in the order of ``order [G, L]`` (small first). In each round those at even places whose cosine
    with a token at an odd place is largest are dropped: at most ``step [G]``. Of equal ones the earlier. With
    ``reorder`` those at even places that are left then stand by falling cosine, and those at odd places after them.

    Returns:
        ``[G, L]`` the tokens left.
    """
    left: list[Tensor] = []
    start = 0
    for part in rows.parts():
        here = slice(start, start + len(part.open))
        left.append(_thin(part, free[here], target[here], order[here], step[here], reorder))
        start = here.stop
    return torch.cat(left) if left else free


def _thin(rows: GroupRows, free: Tensor, target: Tensor, order: Tensor, step: Tensor, reorder: bool) -> Tensor:
    cosine = rows.features @ rows.features.transpose(1, 2)
    free, order = free.clone(), order.clone()
    each = torch.arange(len(free), device=free.device)[:, None]
    while bool((excess := free.sum(1) - target.clamp(min=1)).max() > 0):
        width = int(free.sum(1).max())
        queue = torch.where(free, order, order.max() + 1).argsort(dim=1, stable=True)[:, :width]
        even, odd = queue[:, ::2], queue[:, 1::2]
        there = free[each, even][..., None] & free[each, odd][:, None]
        similar = cosine[each[..., None], even[..., None], odd[:, None]].masked_fill(~there, -torch.inf).amax(-1)
        place = similar.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        most = excess.minimum(step)
        drop = (place < most[:, None]) & (similar > -torch.inf)
        free[each, even] &= ~drop
        if reorder:
            order[each, even], order[each, odd] = place, torch.arange(width, width + odd.shape[1], device=odd.device)
    return free
