"""Glimpse tokens: learned rows that attend to the prompt and that no other token attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class GlimpseTokens(nn.Module):
    """One learned vector per layer and glimpse token (GlimpsePrune, arXiv 2508.01548: ``learnable_embeddings``).

    At layer 0 the vector *is* the token's embedding; at every other layer of ``layers`` it is added to the token's
    residual stream before the layer: ``g_i = dropout(norm(proj(E[i])))`` with one projection and one norm for all.

    Args:
        hidden_size: decoder width ``D``.
        layers: decoder layers that get a vector; must contain 0.
        length: number of glimpse tokens.
        norm: ``"rmsnorm"`` (epsilon ``eps``) or ``"layernorm"`` (epsilon 1e-5).
        dropout: probability, in training only.
        scale: root mean square of a vector's entries at the start (the norm's initial weight; 1 in the reference).
            Token embeddings may be much smaller than 1. The contribution of the prompt to the glimpse is then
            negligible.
    """

    def __init__(
        self,
        hidden_size: int,
        layers: Sequence[int],
        length: int = 1,
        norm: Literal["rmsnorm", "layernorm"] = "rmsnorm",
        eps: float = 1e-6,
        dropout: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if 0 not in layers:
            raise ValueError(f"Expected `layers` of the glimpse tokens to contain layer 0, but got {list(layers)}.")
        if length < 1:
            raise ValueError(f"Expected `length` to be at least 1 glimpse token, but got {length}.")
        self.layers = tuple(layers)
        self.length = length
        self.embeddings = nn.Parameter(torch.empty(len(self.layers), length, hidden_size))
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.RMSNorm(hidden_size, eps=eps) if norm == "rmsnorm" else nn.LayerNorm(hidden_size, eps=1e-5)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embeddings, std=0.02)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)
        nn.init.constant_(self.norm.weight, scale)

    def forward(self) -> dict[int, Tensor]:
        """Vectors ``[length, D]`` by layer, computed for all layers at once, so that weights are read once."""
        vectors = self.dropout(self.norm(self.proj(self.embeddings)))
        return dict(zip(self.layers, vectors.unbind(), strict=True))
