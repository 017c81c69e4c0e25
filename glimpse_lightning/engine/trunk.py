"""The main stream: a prompt's columns on their way through the decoder, and where its visual tokens belong.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``M`` columns that remain, ``V`` visual tokens, ``D`` width, ``G``
rows of the tail.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.engine.compaction import Compaction
from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prompt import Prompt, TokenLayout
from glimpse_lightning.engine.prompt_cache import PromptCache, PromptColumns
from glimpse_lightning.engine.shared_prefix import SharedPrefix
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk_memory import TrunkMemory


@dataclass
class Trunk:
    """The main stream: hidden states of the columns still there, and their mask, positions and origin.

    A tail may run along: rows after the prompt that the prompt, being causal, never sees. They run in the same calls of
    the layers, whereas a side stream makes calls of its own and reads all weights again. Only the layers see the tail:
    ``hidden`` and the columns are the prompt's alone. Caches hold the tail's keys and values after the prompt's until
    the next compaction.

    Attributes:
        states: ``[B, M + G, D]`` states of the columns still there, and of the tail.
        columns: the columns still there; the same object until some leave.
        alive: ``[V']`` packed indices of the visual tokens still there, ascending.
        shared_prefix: the samples' common prefixes, which run only once, or a conversation's, known from an earlier
            turn; ``None`` where each sample runs whole.
        tail: ``G``, the number of rows in the tail.
        counted: ``[B, M]`` the columns that sliding windows count; ``None`` = all of them.
    """

    decoder: Decoder
    prompt: Prompt
    layout: TokenLayout
    states: Tensor
    columns: PromptColumns
    alive: Tensor
    cache: PromptCache
    masks: dict[str, Any] = field(default_factory=dict)
    positions: Any = None
    shared_prefix: SharedPrefix | TrunkMemory | None = None
    tail: int = 0
    counted: Tensor | None = None
    _places: tuple[Tensor, ...] | None = None

    @classmethod
    def start(cls, decoder: Decoder, prompt: Prompt, shared_prefix: SharedPrefix | TrunkMemory | None = None) -> Trunk:
        visual = prompt.visual
        slot = torch.where(visual, visual.flatten().cumsum(0).view_as(visual) - 1, -1)
        layout = TokenLayout.of(visual, prompt.grid, prompt.views)
        column = torch.arange(visual.shape[1], device=visual.device).expand_as(visual)
        alive = torch.arange(len(layout.item), device=visual.device)
        columns = PromptColumns(prompt.mask, prompt.position_ids, slot, column)
        return cls(
            decoder, prompt, layout, prompt.embeds, columns, alive, PromptCache(), shared_prefix=shared_prefix,
            _places=(layout.sample, layout.column),
        )  # fmt: skip

    @property
    def hidden(self) -> Tensor:
        """``[B, M, D]`` of the prompt's columns still there."""
        return self.states[:, : -self.tail] if self.tail else self.states

    def append_tail(self, rows: int) -> None:
        """Let ``rows`` rows of zeros run along after the prompt from now on."""
        self.states, self.tail = F.pad(self.states, (0, 0, 0, rows)), rows
        self.masks, self.positions = {}, None

    def drop_tail(self) -> None:
        """End the tail. Its keys and values stay in the caches until the next compaction."""
        self.states, self.tail = self.hidden, 0
        self.masks, self.positions = {}, None

    def run_layer(self, layer: int, tap: AttentionTap | None = None) -> None:
        if self.shared_prefix is not None and self.shared_prefix.allows(tap):
            self.states = self.shared_prefix.run_layer(
                layer, self.decoder, self.states, self.whole_mask, self.whole_position_ids, self.cache, tap
            )
        else:
            self._run_each(layer, tap)
        self.cache.columns.append(self.columns)
        self.cache.ran_on.append(self.columns.length)
        if layer in self.prompt.layer_features:
            features = self.of_alive(self.prompt.layer_features[layer]).to(self.states)
            self.states = self.states.index_put(self.places, self.visual(self.states) + features)

    def _run_each(self, layer: int, tap: AttentionTap | None) -> None:
        if self.positions is None:
            self.positions = self.decoder.position_embeddings(self.states, self.whole_position_ids)
        kind = self.decoder.layer_type(layer)
        if kind not in self.masks:
            self.masks[kind] = self.decoder.attention_mask(
                layer, self.states, self.whole_mask, None, self._image(), self.counted
            )
        self.states = self.decoder.run_layer(layer, self.states, self.masks[kind], self.positions, self.cache, tap)

    def _image(self) -> Tensor | None:
        """``[B, M + G]`` the item of each visual token, -1 elsewhere; only where the model's masks need it."""
        if not self.decoder.bidirectional_images:
            return None
        image = torch.cat([self.layout.item, self.layout.item.new_full((1,), -1)])[self.slot]
        return F.pad(image, (0, self.tail), value=-1)

    @property
    def whole_mask(self) -> Tensor:
        """``[B, M + G]`` false at padding."""
        return F.pad(self.mask, (0, self.tail), value=True) if self.tail else self.mask

    @property
    def whole_position_ids(self) -> Tensor:
        """``[..., B, M + G]``; the tail's follow those of the last column."""
        if not self.tail:
            return self.position_ids
        steps = torch.arange(1, self.tail + 1, device=self.mask.device)
        return torch.cat([self.position_ids, self.columns.last + steps], -1)

    @property
    def mask(self) -> Tensor:
        """``[B, M]`` false at padding."""
        return self.columns.mask

    @property
    def position_ids(self) -> Tensor:
        """``[..., B, M]``."""
        return self.columns.position_ids

    @property
    def slot(self) -> Tensor:
        """``[B, M]`` packed index of the visual token at a column; -1 elsewhere."""
        return self.columns.slot

    @property
    def column(self) -> Tensor:
        """``[B, M]`` original column."""
        return self.columns.column

    def count(self, open_V: Tensor) -> None:
        """Let sliding windows reach, from now on, as far as if the visual tokens outside ``open_V`` were gone."""
        if any(self.decoder.window(layer) is not None for layer in range(len(self.decoder.layers))):
            self.counted, self.masks = self.columns.kept(open_V), {}

    def compact(self, keep: Tensor, reduced: Tensor | None, first: int = 0, renumber: bool = False) -> None:
        """Drop visual tokens from the states, and from the caches.

        Args:
            keep: ``[V]`` boolean over all visual tokens, true at those that stay.
            reduced: ``[kept, D]`` new states of the kept ones; ``None``: they keep theirs.
            first: first layer whose cache loses the dropped tokens; earlier caches stay unchanged. By default all
                caches lose them.
            renumber: whether the remaining columns get positions without gaps, see :meth:`PromptColumns.renumbered`; by
                default they keep their positions.
        """
        before = self.columns
        plan = Compaction.plan(before.kept(keep))
        after = before.compacted(plan)
        self.cache.compact(keep, before, plan, after, first)
        rows = plan.rows(self.states)
        self.states = torch.cat([rows, self.states[:, -self.tail :]], 1) if self.tail else rows
        self.alive = self.alive[keep[self.alive]]
        self.columns = after.renumbered(before) if renumber else after
        self.masks, self.positions, self._places = {}, None, None
        self.shared_prefix, self.counted = None, None
        if reduced is not None:
            self.states[self.places] = reduced

    def layer_lengths(self) -> Tensor:
        """``[B, layers so far]`` columns of each sample that a layer ran on."""
        none = self.columns.length[:, None][:, :0]
        return torch.cat([none, *(length[:, None] for length in self.cache.ran_on)], 1)

    def last_keys(self) -> Tensor:
        """``[B, M, Hk * d]`` keys of the last layer that has run, of the columns still there."""
        held = self.cache.columns[-1]
        keys = self.cache.layers[-1].keys[:, :, : held.mask.shape[1]].transpose(1, 2).flatten(2)
        if held is self.columns:
            return keys
        place = torch.zeros_like(self.prompt.mask, dtype=torch.long)
        order = torch.arange(held.column.shape[1], device=place.device).expand_as(held.column)
        index = place.scatter(1, held.column, order).gather(1, self.column)
        return keys.gather(1, index[..., None].expand(-1, -1, keys.shape[-1]))

    @property
    def at_end(self) -> Tensor:
        """``[V]`` true of a visual token in a prompt's last column, where decoding goes on."""
        return self.layout.column == self.prompt.visual.shape[1] - 1

    @property
    def places(self) -> tuple[Tensor, ...]:
        """``([V'], [V'])`` row and column of the visual tokens still there, in packed order.

        Finding them waits for the device, so it is done once between two compactions and not in every layer.
        """
        if self._places is None:
            self._places = (self.slot >= 0).nonzero(as_tuple=True)
        return self._places

    def of_alive(self, values: Tensor) -> Tensor:
        """Rows of ``values [V, ...]`` of the visual tokens still there: ``[V', ...]``; no copy where all are."""
        return values if len(self.alive) == len(values) else values[self.alive]

    def visual(self, values: Tensor) -> Tensor:
        """Rows of ``values [B, M, ...]`` at the visual tokens still there, packed: ``[V', ...]``."""
        return values[self.places]

    def prompt_keep(self) -> Tensor:
        """``[B, N]`` which columns of the caller's prompt are still there."""
        keep = torch.zeros_like(self.prompt.mask).scatter(1, self.column, self.mask)
        plan = self.prompt.left_padding
        return keep if plan is None else plan.undone(keep)
