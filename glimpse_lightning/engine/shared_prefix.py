"""Shared prefixes: prompts about one image are equal up to the question, and layers run over that part once.

Prompts are causal, so the states of a prefix do not depend on the tokens after it: each layer computes them once per
image and not once per question. Only the columns after it run for every sample, reading the prefix's keys and values.

Suffixes: ``B`` samples, ``N`` columns of the prompt, ``P`` of them before the last ``S``, ``G`` distinct prefixes,
``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.prompt_cache import PrefixView
from glimpse_lightning.engine.taps import AttentionTap

_WORTH = 0.8  # share of a batch's columns that still run, above which two calls of a layer cost more than one


class Assembled(PrefixView):
    """Appends new states to a prefix's and stores both in ``target``."""

    def __init__(self, source: Cache, length: int, target: Cache) -> None:
        super().__init__(source, length)
        self.target = target

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = super().update(key_states, value_states, layer_idx)
        return self.target.update(keys, values, layer_idx)


@dataclass
class SharedPrefix:
    """A batch of left-padded prompts, taken apart into distinct prefixes and the last ``S`` columns of each sample.

    Attributes:
        rows: ``[G]`` a sample that begins with each prefix.
        columns: ``[G, longest prefix]`` its columns.
        group: ``[B]`` the prefix of each sample.
        places: ``[B, P]`` which token of its prefix stands at each column (the first one, at padding).
    """

    rows: Tensor
    columns: Tensor
    group: Tensor
    places: Tensor
    _positions: dict[int, Any] = field(default_factory=dict)
    _masks: dict[tuple[str, int], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, decoder: Decoder, prompt: Prompt, copies: int = 1) -> SharedPrefix | None:
        """How to take the batch apart; ``None`` where it shares too little to be worth it.

        Samples share a prefix where all inputs of the decoder are equal, in value and in position. One thing is assumed
        and not compared: where a model adds features after layers, equal image tokens have equal features. Waits for
        the device.

        Args:
            copies: number of times that each sample will stand in the batch, as by ``prompt.repeated(copies)``.
        """
        batch, width = len(prompt.mask) * copies, prompt.mask.shape[1]
        if batch == 1 or decoder.bidirectional_images:  # there a token of an image sees later ones
            return None
        pad = (~prompt.mask).sum(1)
        group, common = _groups(prompt, pad)
        suffix = max(1, int((width - pad - common).max()))
        rows, group = group.unique(return_inverse=True)
        lengths = (width - suffix - pad).clamp(min=0)
        longest = int(lengths.max())
        if len(rows) * longest + batch * suffix > _WORTH * batch * width:
            return None
        device = pad.device
        columns = (pad[rows, None] + torch.arange(longest, device=device)).clamp(max=width - 1)
        places = (torch.arange(width - suffix, device=device) - pad[:, None]).clamp(min=0)
        group, places = (x.repeat_interleave(copies, 0) for x in (group, places))
        return cls(rows * copies, columns, group, places)

    @property
    def length(self) -> int:
        """``P``."""
        return self.places.shape[1]

    def allows(self, tap: AttentionTap | None) -> bool:
        """Whether a layer with this tap can be run apart: the tap reads only the last rows and gates no key."""
        return tap is None or (tap.rows is None and tap.key_bias is None)

    def run_layer(
        self,
        layer: int,
        decoder: Decoder,
        hidden: Tensor,
        mask: Tensor,
        position_ids: Tensor,
        cache: Cache,
        tap: AttentionTap | None,
    ) -> Tensor:
        """States ``[B, N, D]`` after decoder layer ``layer``; keys and values of all samples go to ``cache``.

        Args:
            hidden: ``[B, N, D]`` states before the layer. ``N`` exceeds the prompt's width where a tail runs along.
            mask: ``[B, N]`` false at padding.
            position_ids: ``[..., B, N]``.
        """
        width = hidden.shape[1]
        kind = decoder.layer_type(layer), width
        prefixes = hidden[self.rows[:, None], self.columns]
        if width not in self._positions:
            mine = position_ids[..., self.rows[:, None], self.columns]
            suffix = position_ids[..., self.length :]
            embed = decoder.position_embeddings
            self._positions[width] = embed(prefixes, mine), embed(hidden, suffix)
        if kind not in self._masks:
            everything = torch.ones(prefixes.shape[:2], dtype=torch.bool, device=hidden.device)
            view = PrefixView(cache, self.length)
            self._masks[kind] = (
                decoder.attention_mask(layer, prefixes, everything, None),
                decoder.attention_mask(layer, hidden[:, self.length :], mask, view),
            )
        (prefix_mask, suffix_mask), (prefix_positions, positions) = self._masks[kind], self._positions[width]
        own = DynamicCache()
        prefixes = decoder.run_layer(layer, prefixes, prefix_mask, prefix_positions, own, None)
        states = own.layers[layer]
        states.keys, states.values = self._spread(states.keys), self._spread(states.values)
        if tap is not None:
            rows = tap.span
            tap.span = None if rows is None else slice(rows.start - self.length, rows.stop - self.length)
        suffix = hidden[:, self.length :]
        suffix = decoder.run_layer(layer, suffix, suffix_mask, positions, Assembled(own, self.length, cache), tap)
        return torch.cat([prefixes[self.group[:, None], self.places], suffix], 1)

    def _spread(self, states: Tensor) -> Tensor:
        """Keys or values ``[G, H, longest prefix, d]`` of the prefixes -> ``[B, H, P, d]`` before each sample."""
        return states.transpose(1, 2)[self.group[:, None], self.places].transpose(1, 2)


def _groups(prompt: Prompt, pad: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample the first one that shares at least half the batch's width with it, and how many tokens it shares.

    Both ``[B]``; a sample that shares with none before it shares all its tokens with itself.
    """
    width = prompt.mask.shape[1]
    column = torch.arange(width, device=pad.device) + pad[:, None]
    inside, column = column < width, column.clamp(max=width - 1)  # from each sample's first token on
    embeds = prompt.embeds.gather(1, column[..., None].expand_as(prompt.embeds))
    positions = prompt.position_ids.gather(-1, column.expand_as(prompt.position_ids))
    positions = positions.view(-1, *column.shape).movedim(0, -1)
    same = [
        (embeds[row] == embeds).all(-1) & (positions[row] == positions).all(-1) & inside[row] & inside
        for row in range(len(pad))  # one sample against all at a time: all pairs at once would not fit for long prompts
    ]
    common = torch.stack(same).long().cumprod(-1).sum(-1)
    enough = common >= width / 2
    enough.fill_diagonal_(True)
    group = enough.long().argmax(1)
    return group, common.gather(1, group[:, None])[:, 0]
