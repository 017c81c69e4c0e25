"""Ragged helpers: everything done per group (sample, item, ...) on packed tokens, without a loop over groups or tokens.

``group [V]`` holds the group of every token; groups need not be contiguous and may be empty. None of these functions
waits for the device, except :func:`repeated_segments` and :class:`Padding`, because the lengths of their results depend
on values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Sum of ``values [V]`` per group: ``[num_groups]``."""
    return values.new_zeros(num_groups).index_add(0, group, values)


def segment_count(group: Tensor, num_groups: int, where: Tensor | None = None) -> Tensor:
    """Number of tokens in each group (only those where the boolean ``where [V]`` is true): int64 ``[num_groups]``."""
    ones = torch.ones_like(group, dtype=torch.int64) if where is None else where.to(torch.int64)
    return segment_sum(ones, group, num_groups)


def segment_mean(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Mean of ``values [V]`` per group, 0 for an empty group: ``[num_groups]``."""
    count = segment_count(group, num_groups).clamp(min=1)
    return segment_sum(values, group, num_groups) / count.to(values.dtype)


def segment_max(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Largest of ``values [V]`` per group, without gradient; 0 where a group is empty or holds only infinities."""
    top = values.new_full((num_groups,), -torch.inf).scatter_reduce(0, group, values.detach(), "amax")
    return torch.where(top.isinf(), 0.0, top)


def repeated_segments(sizes: Tensor, copies: int) -> Tensor:
    """Indices ``[copies * V]`` that give each of the segments of ``sizes``, contiguous and ``V`` long together,
    ``copies`` times in a row.
    """
    starts = sizes.cumsum(0) - sizes
    lengths = sizes.repeat_interleave(copies)
    shift = starts.repeat_interleave(copies) - (lengths.cumsum(0) - lengths)
    total = torch.arange(int(lengths.sum()), device=sizes.device)
    return total + shift.repeat_interleave(lengths, output_size=len(total))


def rank_in_group(values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Rank of each token in its group: 0 for the highest of ``values [V]``; of equal values the earlier token first.

    NaN ranks below everything. Returns int64 ``[V]``.
    """
    values = torch.where(values.isnan(), -torch.inf, values) if values.is_floating_point() else values
    by_value = values.sort(descending=True, stable=True).indices
    order = by_value[group[by_value].sort(stable=True).indices]
    count = segment_count(group, num_groups)
    start = count.cumsum(0) - count
    rank = torch.arange(len(group), device=group.device) - start[group[order]]
    return torch.empty_like(rank).scatter(0, order, rank)


def rank_first(first: Tensor, values: Tensor, group: Tensor, num_groups: int) -> Tensor:
    """Rank as of :func:`rank_in_group`, but tokens where the boolean ``first [V]`` is true come before all others."""
    return rank_in_group(first * 2**40 - rank_in_group(values, group, num_groups), group, num_groups)


def floor_share(share: float | Tensor, total: Tensor) -> Tensor:
    """``share`` of each of the counts ``total``, rounded down to int64.

    A product that misses a whole number only by the rounding error of a decimal fraction (0.29 of 100) counts as that
    number.
    """
    return (share * total.double() + 1e-9).floor().long()


def cumsum_before(values: Tensor, group: Tensor, num_groups: int, rank: Tensor) -> Tensor:
    """Sum of the integers ``values [V]`` before each token in its group, in the order of ``rank [V]``.

    Integers only: their sums are exact, so that a group's result cannot depend on the groups before it.
    """
    count = segment_count(group, num_groups)
    slot = (count.cumsum(0) - count)[group] + rank
    total = segment_sum(values, group, num_groups)
    before = torch.zeros_like(values).scatter(0, slot, values).cumsum(0)[slot] - values
    return before - (total.cumsum(0) - total)[group]


class Padding:
    """Packed tokens to ``[groups, longest, ...]`` and back.

    Args:
        label: ``[V]`` integers; tokens with equal labels form a group.
        groups: number of groups, if labels are their numbers, counted from 0; some may be empty then. By default there
            are as many as different labels, in their order.

    Attributes:
        mask: ``[groups, longest]`` true at tokens; ``None`` where all groups are equally long.
    """

    def __init__(self, label: Tensor, groups: int | None = None) -> None:
        if groups is None:
            _, group, count = torch.unique(label, return_inverse=True, return_counts=True)
        else:
            group, count = label, segment_count(label, groups)
        self.groups = count.shape[0]
        ascending = (group[1:] >= group[:-1]).all()
        longest = count.max() if self.groups else count.new_zeros(())
        self.longest, in_order = torch.stack([longest, ascending.to(longest)]).tolist()
        if in_order:
            rank = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[group]
        else:
            rank = rank_in_group(torch.zeros_like(group), group, self.groups)
        self.slot = group * self.longest + rank
        self.mask: Tensor | None = None
        if self.groups * self.longest != len(label):
            self.mask = torch.arange(self.longest, device=label.device) < count[:, None]
        self._in_place = bool(in_order) and self.mask is None

    def pad(self, packed: Tensor) -> Tensor:
        """``[V, ...]`` to ``[groups, longest, ...]``, zeros in the gaps; a view if the packed tokens need no gaps."""
        if not self._in_place:
            flat = packed.new_zeros(self.groups * self.longest, *packed.shape[1:])
            packed = flat.index_copy(0, self.slot, packed)
        return packed.unflatten(0, (self.groups, self.longest))

    def unpad(self, padded: Tensor) -> Tensor:
        """``[groups, longest, ...]`` to ``[V, ...]``, in the order of the packed tokens."""
        flat = padded.flatten(0, 1)
        return flat if self._in_place else flat[self.slot]
