"""Glimpse tokens on their way through the decoder's layers, for one prune stage or for several that share them."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.engine.streams import SideStream
from glimpse_lightning.engine.taps import AttentionTap
from glimpse_lightning.engine.trunk import Trunk
from glimpse_lightning.scorers.glimpse_tokens import GlimpseTokens


class GlimpseRun:
    """A side stream of glimpse tokens, and what its last token's attention was in the layer reached.

    Args:
        tokens: whose vectors enter.
        trunk: the prompt that they stand behind.

    Attributes:
        stream: the rows; may be replaced, before the first layer, by one with more rows behind.
        wanted: layers whose attention row some stage reads.
    """

    def __init__(self, tokens: GlimpseTokens, trunk: Trunk) -> None:
        self.tokens = tokens
        batch, device = trunk.hidden.shape[0], trunk.hidden.device
        steps = torch.arange(1, tokens.length + 1, device=device)
        rows = trunk.hidden.new_zeros(batch, tokens.length, trunk.hidden.shape[-1])
        rows_mask = torch.ones(batch, tokens.length, dtype=torch.bool, device=device)
        self.stream = SideStream(trunk.backbone, rows, rows_mask, trunk.mask, trunk.position_ids[..., -1:] + steps)
        self.wanted: set[int] = set()
        self._reached = -1
        self._row: Tensor | None = None

    def advance(self, layer: int, trunk: Trunk, key_bias: Tensor | None) -> Tensor | None:
        """Run ``layer``, unless another stage has made it do so; ``[B, H, keys]`` attention logits where wanted."""
        if layer == self._reached:
            return self._row
        vectors, length = self.tokens(layer), self.tokens.length
        if vectors is not None:
            hidden = self.stream.hidden
            glimpse = hidden[:, :length] + vectors.to(hidden.dtype)
            self.stream.hidden = torch.cat([glimpse, hidden[:, length:]], dim=1)
        tap = AttentionTap(row=length - 1 if layer in self.wanted else None, key_bias=key_bias)
        self.stream.run_layer(layer, trunk.cache, tap)
        self._reached, self._row = layer, tap.logits
        return tap.logits

    def seen(self, trunk: Trunk) -> Tensor:
        """``[B, keys]`` what the last glimpse token may attend to: not the rows behind it."""
        seen = self.stream.mask.clone()
        seen[:, trunk.mask.shape[1] + self.tokens.length :] = False
        return seen
