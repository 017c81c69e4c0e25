"""Glimpse tokens on their way through the decoder's layers, for one prune stage or for several that share them."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.engine.streams import SideStream
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.scorers.glimpse_tokens import GlimpseTokens


class GlimpseRun:
    """Glimpse tokens after a prompt, and the attention row of the last one in the layer reached.

    Args:
        tokens: vectors of the glimpse tokens, by the layer that they enter.
        trunk: the prompt before them.
        rides: whether they run as the main stream's tail, in its own calls of the layers, at no extra cost. In
            training, gradients would flow through the whole main stream, so they have to be a side stream (the
            default). Both compute the same.

    Attributes:
        stream: the rows of the side stream; may be replaced, before the first layer, by one with more rows after them.
            ``None`` where they ride.
        wanted: layers whose attention row some stage reads.
    """

    def __init__(self, tokens: GlimpseTokens, trunk: Trunk, rides: bool = False) -> None:
        self.tokens = tokens
        self.stream: SideStream | None = None
        self.wanted: set[int] = set()
        self._vectors: dict[int, Tensor] | None = None
        self._reached = -1
        self._row: Tensor | None = None
        if rides:
            trunk.append_tail(tokens.length)
            return
        batch, device = trunk.hidden.shape[0], trunk.hidden.device
        steps = torch.arange(1, tokens.length + 1, device=device)
        rows = trunk.hidden.new_zeros(batch, tokens.length, trunk.hidden.shape[-1])
        rows_mask = torch.ones(batch, tokens.length, dtype=torch.bool, device=device)
        self.stream = SideStream(trunk.decoder, rows, rows_mask, trunk.mask, trunk.position_ids[..., -1:] + steps)

    def enter(self, layer: int, trunk: Trunk) -> None:
        """Where the tokens ride: add the vectors that enter ``layer``, before the main stream's call of it."""
        vectors = self._entering(layer)
        if (
            vectors is not None
        ):  # in place: the layer before has just made these states, and nothing else reads the tail
            trunk.states[:, -self.tokens.length :] += vectors.to(trunk.states.dtype)

    def leave(self, tap: AttentionTap) -> None:
        """Where the tokens ride: take their last one's row out of the rows that the main stream's call captured."""
        self._row = None if tap.logits is None else tap.logits[:, :, -1]

    def advance(self, layer: int, trunk: Trunk, key_bias: Tensor | None) -> Tensor | None:
        """Run ``layer`` once; returns ``[B, H, keys]`` attention logits where ``wanted``, else ``None``."""
        if layer == self._reached or self.stream is None:
            return self._row
        vectors, length = self._entering(layer), self.tokens.length
        if vectors is not None:
            hidden = self.stream.hidden
            glimpse = hidden[:, :length] + vectors.to(hidden.dtype)
            self.stream.hidden = torch.cat([glimpse, hidden[:, length:]], dim=1)
        tap = AttentionTap(span=slice(length - 1, length) if layer in self.wanted else None, key_bias=key_bias)
        self.stream.run_layer(layer, trunk.cache, tap)
        self._reached, self._row = layer, None if tap.logits is None else tap.logits[:, :, 0]
        return self._row

    def _entering(self, layer: int) -> Tensor | None:
        if self._vectors is None:
            self._vectors = self.tokens()
        return self._vectors.get(layer)

    def visible(self, trunk: Trunk) -> Tensor:
        """``[B, keys]`` true at keys that the last glimpse token may attend to; false at the rows after it."""
        if self.stream is None:
            return trunk.whole_mask
        visible = self.stream.mask.clone()
        visible[:, trunk.mask.shape[1] + self.tokens.length :] = False
        return visible
