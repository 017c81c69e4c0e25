"""Thinning: tokens that are most like another one are dropped, a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.policies.greedy import Rows


def thin(rows: Rows, free: Tensor, target: Tensor, order: Tensor, step: int | None) -> Tensor:
    """Drop tokens until each group has ``target [G]`` of its ``free [G, L]`` ones left.

    Free tokens stand in the order of ``order [G, L]`` (small first). In each round those at even places whose cosine
    with a token at an odd place is largest are dropped: at most ``step``, or all that may go. Of equal ones the earlier.

    Returns:
        ``[G, L]`` the tokens left.
    """
    left = [_thin(part, *rest, step) for part, *rest in _parts(rows, free, target, order)]
    return torch.cat(left) if left else free


def _parts(rows: Rows, *more: Tensor) -> list[tuple[Rows, Tensor, Tensor, Tensor]]:
    parts, start = [], 0
    for part in rows.parts():
        here = slice(start, start + len(part.open))
        parts.append((part, *(values[here] for values in more)))
        start = here.stop
    return parts  # type: ignore[return-value]


def _thin(rows: Rows, free: Tensor, target: Tensor, order: Tensor, step: int | None) -> Tensor:
    cosine = rows.features @ rows.features.transpose(1, 2)
    free = free.clone()
    each = torch.arange(len(free), device=free.device)[:, None]
    while bool((excess := free.sum(1) - target.clamp(min=1)).max() > 0):
        width = int(free.sum(1).max())
        queue = torch.where(free, order, order.max() + 1).argsort(dim=1, stable=True)[:, :width]
        even, odd = queue[:, ::2], queue[:, 1::2]
        there = free[each, even][..., None] & free[each, odd][:, None]
        similar = cosine[each[..., None], even[..., None], odd[:, None]].masked_fill(~there, -torch.inf).amax(-1)
        place = similar.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        most = excess if step is None else excess.clamp(max=step)
        drop = (place < most[:, None]) & (similar > -torch.inf)
        free[each, even] &= ~drop
    return free
