"""Side streams: rows that read a prompt's keys and values layer by layer, and that the prompt never sees.

In training the glimpse tokens are one (in inference they ride, see :class:`Trunk`), and the answer tokens of a training
step are another. A side stream costs a call of a few rows per layer and leaves the main stream exactly Hugging Face's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.prompt_cache import PrefixView, PromptCache, PromptColumns
from glimpse_lightning.engine.taps import AttentionTap


class SideStream:
    """``R`` rows per sample that follow the prompt and attend to it and, causally, to each other.

    Args:
        decoder: the decoder whose layers run.
        rows: ``[B, R, D]`` states that enter layer 0.
        rows_mask: ``[B, R]`` false at padding.
        prompt_mask: ``[B, N]`` false at padding.
        position_ids: ``[..., B, R]`` positions of the rows.
    """

    def __init__(
        self, decoder: Decoder, rows: Tensor, rows_mask: Tensor, prompt_mask: Tensor, position_ids: Tensor
    ) -> None:
        self.decoder = decoder
        self.hidden = rows
        self.rows_mask = rows_mask
        self.position_embeddings = decoder.position_embeddings(rows, position_ids)
        self._masks: dict[str, Any] = {}
        self._set_mask(prompt_mask)

    def set_prompt(self, prompt: PromptColumns, counted: Tensor | None = None) -> None:
        """Set the columns of the prompt that the layers hold from now on; the rows are numbered after them.

        Args:
            counted: ``[B, M]`` those that sliding windows count; ``None`` = all.
        """
        steps = torch.arange(1, self.hidden.shape[1] + 1, device=self.hidden.device)
        self.position_embeddings = self.decoder.position_embeddings(self.hidden, prompt.last + steps)
        self._set_mask(prompt.mask, counted)

    def _set_mask(self, prompt_mask: Tensor, counted: Tensor | None = None) -> None:
        self.mask = torch.cat([prompt_mask, self.rows_mask], 1)
        self.counted = None if counted is None else torch.cat([counted, self.rows_mask], 1)
        self.prompt_length = prompt_mask.shape[1]
        self._masks.clear()

    def run_layer(self, layer: int, cache: Cache, tap: AttentionTap | None = None) -> None:
        """Advance through decoder layer ``layer``, reading the prompt's states from ``cache``."""
        view = PrefixView(cache, self.prompt_length)
        kind = self.decoder.layer_type(layer)
        if kind not in self._masks:
            self._masks[kind] = self.decoder.attention_mask(layer, self.hidden, self.mask, view, counted=self.counted)
        self.hidden = self.decoder.run_layer(layer, self.hidden, self._masks[kind], self.position_embeddings, view, tap)


def run_continuation(
    decoder: Decoder, cache: PromptCache, rows: Tensor, rows_mask: Tensor, bias_V: Sequence[Tensor] | None = None
) -> Tensor:
    """States ``[B, R, D]`` after the last layer of rows that follow a prompt; layers may hold different columns of it.

    Args:
        cache: the prompt's keys and values, which stay as they are.
        rows: ``[B, R, D]`` states that enter layer 0.
        rows_mask: ``[B, R]`` false at padding (on the right).
        bias_V: by layer, logs of soft gates on the visual tokens.
    """
    columns = cache.columns[0]
    steps = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    stream = SideStream(decoder, rows, rows_mask, columns.mask, columns.last + steps)
    for layer in range(len(decoder.layers)):
        if cache.columns[layer] is not columns:
            columns = cache.columns[layer]
            stream.set_prompt(columns)
        bias = None if bias_V is None else columns.spread(bias_V[layer])
        stream.run_layer(layer, cache, None if bias is None else AttentionTap(key_bias=bias))
    return stream.hidden
