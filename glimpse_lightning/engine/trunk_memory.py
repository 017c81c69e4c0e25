"""What a conversation keeps of its tokens from one turn to the next, before anything is pruned.

Prompts are causal, so the tokens of earlier turns have the same states, keys and values whatever follows them. A later
turn runs its new tokens alone through the layers before the first stage. The stage then scores all visual tokens by the
new question, those included that an earlier turn has dropped, and the prefill equals one of the whole conversation.

Suffixes: ``N`` columns of the prompt, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prompt import Prompt
from glimpse_lightning.engine.prompt_cache import PrefixView
from glimpse_lightning.engine.shared_prefix import Assembled
from glimpse_lightning.engine.taps import AttentionTap, row_logits

if TYPE_CHECKING:
    from glimpse_lightning.pruner.pruner import Pruner


class TrunkMemory:
    """One conversation's tokens in the layers before the first stage.

    Args:
        wanted: layers after which a stage reads states of tokens.

    Attributes:
        length: number of the prompt's first columns that are known; only the columns after them run.
    """

    def __init__(self, wanted: Iterable[int] = ()) -> None:
        self.wanted = frozenset(wanted)
        self.length = 0
        self._prompt: Prompt | None = None
        self._known, self._next = DynamicCache(), DynamicCache()
        self._states: dict[int, Tensor] = {}
        self._queries: dict[int, Tensor] = {}
        self._masks: dict[str, Any] = {}
        self._positions: Any = None

    @classmethod
    def of(cls, decoder: Decoder, pruner: Pruner | None) -> TrunkMemory | None:
        """The memory of a conversation with a pruned model.

        ``None`` where tokens of an image see later ones, so that all have to run in every turn.
        """
        if decoder.bidirectional_images:
            return None
        stages = [] if pruner is None else [*pruner.stages]
        texts = {layer for stage in stages for layer in stage.requires.text_layers}
        return cls(texts | {stage.after_layer for stage in stages[:1]})

    @property
    def nbytes(self) -> int:
        """Bytes that are held between two turns."""
        prompt = 0 if self._prompt is None else self._prompt.nbytes
        held = [tensor for layer in self._next.layers for tensor in (layer.keys, layer.values)]
        rows = [*self._states.values(), *self._queries.values()]
        return prompt + sum(tensor.nbytes for tensor in [*held, *rows])

    def meet(self, prompt: Prompt) -> None:
        """Find the columns that ``prompt``, of one sample, has in common with the one before."""
        before = self._prompt
        self._prompt = replace(prompt, vision={}, layer_features={})  # they are not compared, and need not be held
        self._known, self._next = self._next, DynamicCache()
        self._masks, self._positions = {}, None
        self.length = 0
        if before is not None:
            width = min(before.mask.shape[1], prompt.mask.shape[1])
            same = (before.embeds[0, :width] == prompt.embeds[0, :width]).all(-1)
            places = before.position_ids[..., :width] == prompt.position_ids[..., :width]
            same &= places.reshape(-1, width).all(0)
            most = prompt.mask.shape[1] - 1  # the last row is read, and has to run
            self.length = min(int(same.long().cumprod(0).sum()), most)

    def allows(self, tap: AttentionTap | None) -> bool:
        """Whether a layer with this tap can be run here: in inference always, as :meth:`of` has seen to it."""
        return tap is None or tap.key_bias is None

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
        """States ``[1, N, D]`` after decoder layer ``layer``, zeros at known columns after layers that are not wanted;
        keys and values of all columns go to ``cache``.

        Args:
            hidden: ``[1, N, D]`` states before the layer. ``N`` exceeds the prompt's width where a tail runs along.
            mask: ``[1, N]`` false at padding.
            position_ids: ``[..., 1, N]``.
        """
        start, rows = self.length, hidden[:, self.length :]
        kind = decoder.layer_type(layer)
        if self._positions is None:
            self._positions = decoder.position_embeddings(rows, position_ids[..., start:])
        if kind not in self._masks:
            view = PrefixView(cache, start) if start else None
            self._masks[kind] = decoder.attention_mask(layer, rows, mask, view)
        inner = None if tap is None else self._inner(tap)
        target = Assembled(self._known, start, cache) if start else cache
        rows = decoder.run_layer(layer, rows, self._masks[kind], self._positions, target, inner)
        if tap is not None and inner is not None:
            tap.logits = inner.logits
            self._capture_rows(layer, tap, inner, cache.layers[layer].keys)
        before = self._states.get(layer)
        if before is None or not start:
            before = rows.new_zeros(1, start, rows.shape[-1])
        states = torch.cat([before[:, :start], rows], 1)
        self._keep(layer, cache, states)
        return states

    def _inner(self, tap: AttentionTap) -> AttentionTap:
        """The tap of the columns that run; where rows of text are asked for, it captures those of all their text."""
        span = None if tap.span is None else slice(tap.span.start - self.length, tap.span.stop - self.length)
        return AttentionTap(span=span, rows=None if tap.rows is None else self._text(self.length) - self.length)

    def _capture_rows(self, layer: int, tap: AttentionTap, inner: AttentionTap, keys: Tensor) -> None:
        """Logits of the rows that ``tap`` asks for: queries of earlier text are known, and meet the keys anew."""
        if tap.rows is None:
            return
        assert inner.rows_queries is not None
        queries = inner.rows_queries
        if self.length:
            known = self._text(0).shape[1] - self._text(self.length).shape[1]
            queries = torch.cat([self._queries[layer][:, :, :known], queries], 2)
        self._queries[layer] = queries
        place = torch.searchsorted(self._text(0)[0], tap.rows[0]).clamp(max=queries.shape[2] - 1)
        tap.rows_logits = row_logits(queries[:, :, place], keys) * inner.scaling

    def _text(self, start: int) -> Tensor:
        """``[1, T]`` columns of text from ``start`` on."""
        assert self._prompt is not None
        text = ~self._prompt.visual[0, start:]
        return text.nonzero()[:, 0][None] + start

    def _keep(self, layer: int, cache: Cache, states: Tensor) -> None:
        """Hold what the next turn needs of a layer, without the tail."""
        assert self._prompt is not None
        width = self._prompt.mask.shape[1]
        held = cache.layers[layer]
        self._next.update(held.keys[:, :, :width], held.values[:, :, :width], layer)
        if layer in self.wanted:
            self._states[layer] = states[:, :width].clone()
