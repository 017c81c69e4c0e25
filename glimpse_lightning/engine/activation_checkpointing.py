"""Activation checkpointing of decoder layers that write to, or read from, a cache.

Hugging Face's own checkpointing drops the cache. Here a layer's activations are computed again in the backward pass
over the keys and values that the layer found the first time. The states that it wrote then are not written twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache

from glimpse_lightning.engine.prompt_cache import PrefixView

States = tuple[Tensor, Tensor]


class _Found(DynamicCache):
    """Shows a layer the states it found the first time, followed by its new ones, and stores nothing."""

    def __init__(self, found: States | None) -> None:
        super().__init__()
        self.found = found

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object) -> States:
        if self.found is None:
            return key_states, value_states
        return torch.cat([self.found[0], key_states], 2), torch.cat([self.found[1], value_states], 2)


def recomputed(
    call: Callable[[Tensor, Cache | None], Tensor], layer: int, hidden: Tensor, cache: Cache | None
) -> Tensor:
    """``call(hidden, cache)``, whose activations are dropped and computed again in the backward pass.

    Args:
        call: function that runs decoder layer ``layer``.
        hidden: ``[B, n, D]`` states before the layer.
        cache: keys and values that the layer attends to and adds to.
    """
    found, first = _found(cache, layer), True

    def run(hidden: Tensor) -> Tensor:
        nonlocal first
        shown, first = cache if first or cache is None else _Found(found), False
        return call(hidden, shown)

    return checkpoint(run, hidden, use_reentrant=False)


def _found(cache: Cache | None, layer: int) -> States | None:
    if isinstance(cache, PrefixView):
        return cache.states(layer)
    if cache is None or len(cache.layers) <= layer or not cache.layers[layer].get_seq_length():
        return None
    return cache.layers[layer].keys, cache.layers[layer].values
