"""Compaction: taking dropped columns out of a left-padded batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache


@dataclass(frozen=True)
class Compaction:
    """A plan that moves the kept columns of each row to its right end, in order.

    Attributes:
        index: ``[B, M]`` source column of each new column (any dropped column where ``mask`` is false).
        mask: ``[B, M]`` true at kept columns; rows that kept fewer than ``M`` are padded on the left.
        source: ``N``, columns before.
    """

    index: Tensor
    mask: Tensor
    source: int

    @classmethod
    def plan(cls, keep: Tensor) -> Compaction:
        """From ``keep [B, N]``; ``M`` is the longest row's count, for which it waits for the device."""
        counts = keep.sum(1)
        width = int(counts.max())
        # A stable sort of booleans puts dropped columns first and leaves kept ones in their order.
        index = keep.to(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
        mask = torch.arange(width, device=keep.device) >= (width - counts)[:, None]
        return cls(index, mask, keep.shape[1])

    def repeated(self, copies: int) -> Compaction:
        """Each row's plan ``copies`` times in a row."""
        index, mask = (x.repeat_interleave(copies, 0) for x in (self.index, self.mask))
        return Compaction(index, mask, self.source)

    def to(self, device: torch.device) -> Compaction:
        """The same plan on another device."""
        return Compaction(self.index.to(device), self.mask.to(device), self.source)

    def undone(self, marks: Tensor) -> Tensor:
        """Where the columns that ``marks [B, M]`` marks came from: ``[B, N]``."""
        return marks.new_zeros(len(marks), self.source).scatter(1, self.index, marks & self.mask)

    def columns(self, values: Tensor, padding: int | float | None = None) -> Tensor:
        """Kept columns ``[..., B, M]`` of ``values [..., B, N]``, with ``padding`` where the mask is false."""
        out = values.gather(-1, self.index.expand(*values.shape[:-1], -1))
        return out if padding is None else out.masked_fill(~self.mask, padding)

    def rows(self, hidden: Tensor) -> Tensor:
        """Kept columns ``[B, M, D]`` of ``hidden [B, N, D]``."""
        return hidden.gather(1, self.index[..., None].expand(-1, -1, hidden.shape[-1]))

    def heads(self, states: Tensor) -> Tensor:
        """Kept columns ``[B, H, M, d]`` of ``states [B, H, N, d]``."""
        if states.shape[0] == 1:
            return states.index_select(2, self.index[0])
        index = self.index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        return states.gather(2, index)


def pad_left(attention_mask: Tensor) -> Compaction | None:
    """A plan that turns any padding of ``attention_mask [B, N]`` into left padding; ``None`` where it is so already."""
    mask = attention_mask.bool()
    if bool((mask[:, 1:] >= mask[:, :-1]).all()):
        return None
    return Compaction.plan(mask)


def fill_cache(cache: Cache, source: Cache) -> Cache:
    """An empty ``cache`` of any kind with the keys and values of ``source`` in it."""
    for index, layer in enumerate(source.layers):
        cache.update(layer.keys, layer.values, index)
    return cache
