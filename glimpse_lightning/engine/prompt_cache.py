"""The KV cache of a prompt, and which of the prompt's columns each of its layers holds.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``M`` columns that a layer holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from glimpse_lightning.engine.compaction import Compaction


@dataclass(frozen=True, eq=False)
class PromptColumns:
    """Mask, position and origin of each column of a left-padded prompt, of which some may have been dropped.

    Attributes:
        mask: ``[B, M]`` false at padding.
        position_ids: ``[..., B, M]``.
        slot: ``[B, M]`` packed index of the visual token at a column; -1 elsewhere.
        column: ``[B, M]`` original column.
        numbering: how often positions have been renumbered.
    """

    mask: Tensor
    position_ids: Tensor
    slot: Tensor
    column: Tensor
    numbering: int = 0

    @cached_property
    def length(self) -> Tensor:
        """``[B]`` columns of each sample that are no padding."""
        return self.mask.sum(1)

    @property
    def last(self) -> Tensor:
        """``[..., B, 1]`` position of the last column; decoding goes on at the next one."""
        return self.position_ids[..., -1:]

    def kept(self, keep: Tensor) -> Tensor:
        """``[B, M]`` columns of text, and of visual tokens that ``keep [V]`` keeps."""
        return self.mask & torch.cat([keep, keep.new_ones(1)])[self.slot]  # slot -1 = text: always kept

    def compacted(self, plan: Compaction) -> PromptColumns:
        """The columns that ``plan`` keeps, at the positions that they have."""
        return PromptColumns(
            plan.mask, plan.columns(self.position_ids, 1), plan.columns(self.slot, -1), plan.columns(self.column),
            self.numbering,
        )  # fmt: skip

    def renumbered(self, before: PromptColumns) -> PromptColumns:
        """These columns of ``before`` at positions without the gaps of the dropped ones.

        A position that some column held (on any axis) and none holds any more disappears, and all later ones move
        down by one. With one axis, consecutive positions are consecutive again. With (t, h, w) axes (mRoPE), all three
        share one number line: text keeps equal numbers on them, tokens of one row or column of an image still share
        its number, order is kept, and the next position is one after the largest, as in the model's own numbering.
        """
        length = int(before.position_ids.max()) + 1
        lost = before.held(length) & ~self.held(length)
        shift = lost.long().cumsum(-1)
        axes = self.position_ids.reshape(-1, *self.mask.shape)
        moved = torch.stack([axis - shift.gather(1, axis) for axis in axes]).view_as(self.position_ids)
        return replace(self, position_ids=moved.masked_fill(~self.mask, 1), numbering=self.numbering + 1)

    def held(self, length: int) -> Tensor:
        """``[B, length]`` whether a position is that of some column, on any axis."""
        counts = torch.zeros(len(self.mask), length, dtype=torch.long, device=self.mask.device)
        for axis in self.position_ids.reshape(-1, *self.mask.shape):
            counts.scatter_add_(1, axis, self.mask.long())
        return counts > 0

    def spread(self, values: Tensor) -> Tensor:
        """``[B, M]`` of ``values [V]`` at visual tokens, and 0 elsewhere."""
        return torch.cat([values, values.new_zeros(1)])[self.slot]

    def repeated(self, repeats: int) -> PromptColumns:
        """Each sample ``repeats`` times."""
        positions = self.position_ids.repeat_interleave(repeats, self.position_ids.ndim - 2)
        mask, slot, column = (x.repeat_interleave(repeats, 0) for x in (self.mask, self.slot, self.column))
        return PromptColumns(mask, positions, slot, column, self.numbering)


class PromptCache(DynamicCache):
    """Keys and values of a prompt and of the tokens decoded after it; a layer may hold other columns than the next.

    In prefill a layer may also hold those of rows that run along after the prompt (:attr:`Trunk.tail`).

    Beam search reorders the states and leaves the columns: beams stay with their sample, whose rows hold equal columns.

    Attributes:
        columns: the columns of the prompt that each filled layer holds; one object for layers that hold the same.
        ran_on: ``[B]`` columns of each sample that a filled layer ran on, one tensor per filled layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[PromptColumns] = []
        self.ran_on: list[Tensor] = []

    @property
    def even(self) -> bool:
        """Whether all layers hold the same columns at the same positions: Hugging Face's own step then decodes."""
        return all(columns is self.columns[-1] for columns in self.columns)

    def compact(
        self, keep: Tensor, before: PromptColumns, plan: Compaction, after: PromptColumns, first: int = 0
    ) -> None:
        """Remove dropped visual tokens from the filled layers from ``first`` on, and the tail from all layers.

        Keys are already rotated, so those that stay are moved as they are.

        Args:
            keep: ``[V]`` boolean, the visual tokens that stay.
            before, plan, after: columns whose compaction has already been computed, its plan, and its result.
            first: first layer that loses dropped tokens; by default all layers do.
        """
        known = {id(before): (plan, after)}
        for index, columns in enumerate(self.columns):
            if index < first:
                layer, length = self.layers[index], columns.mask.shape[1]
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
                continue
            if id(columns) not in known:
                own = Compaction.plan(columns.kept(keep))
                same = columns.numbering == after.numbering
                known[id(columns)] = own, after if same else columns.compacted(own)
            plan, self.columns[index] = known[id(columns)]
            layer = self.layers[index]
            layer.keys, layer.values = plan.heads(layer.keys), plan.heads(layer.values)


class PrefixView(DynamicCache):
    """Shows a layer the first ``length`` cached states of ``source``, then the new ones, and stores nothing."""

    def __init__(self, source: Cache, length: int) -> None:
        super().__init__()
        self.source = source
        self.length = length

    def states(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keys and values that the layer is shown."""
        layer = self.source.layers[layer_idx]
        return layer.keys[:, :, : self.length], layer.values[:, :, : self.length]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = self.states(layer_idx)
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length + query_length, 0


def fork_cache(cache: PromptCache, repeats: int = 1) -> PromptCache:
    """A cache that can grow without touching ``cache``; tensors are shared, or repeated row by row."""
    new = PromptCache()
    for index, layer in enumerate(cache.layers):
        keys, values = layer.keys, layer.values
        if repeats > 1:
            keys, values = keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)
        new.update(keys[:, :, :0], values[:, :, :0], index)
        new.layers[index].keys, new.layers[index].values = keys, values
    if repeats > 1:
        repeated = {id(columns): columns.repeated(repeats) for columns in cache.columns}
        new.columns = [repeated[id(columns)] for columns in cache.columns]
    else:
        new.columns = list(cache.columns)
    new.ran_on = [length.repeat_interleave(repeats) for length in cache.ran_on] if repeats > 1 else list(cache.ran_on)
    return new
