"""Attention taps: capture, or gate, single attention rows inside any attention kernel.

Transformers looks attention functions up by name in ``ALL_ATTENTION_FUNCTIONS`` and passes them q and k after RoPE and
after the cache update. :func:`install` wraps the function a decoder uses; a layer called with ``glimpse_tap=tap``
passes the tap down to the wrapper, every other call goes straight through. The kernel itself (SDPA,
FlashAttention, ...) always runs unchanged: no attention map, no eager fallback.

Eager attention is not in the registry (each modelling file has its own). It is registered here, under a name of this
package, as a function that calls the module's own one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glimpse_lightning.engine.in_use import while_in_use
from glimpse_lightning.runtime.errors import GlimpseError

TAPPED_EAGER = "glimpse_eager"
Observer = Callable[[Tensor, Tensor, Any, Mapping[str, Any]], None]
"""Called with query, key ``[B, H, N, d]``, attention mask and options of an attention call, before it attends."""


class _Observers(local):
    """Observers by id of the attention module, for this thread only: forwards of other threads are not observed."""

    def __init__(self) -> None:
        self.of: dict[int, list[Observer]] = {}


_observers = _Observers()
_HEAD_DIM_MULTIPLE = 8  # FlashAttention kernels need head dimensions that are multiples of 8


@dataclass
class AttentionTap:
    """Rows to capture, and gates to apply, in one attention call.

    Attributes:
        span: the ``R`` consecutive query rows whose logits are captured; ``None`` captures nothing.
        key_bias: ``[B, n]`` added to the attention logits of the first ``n`` keys for every query and head (soft
            gates: the log of each key's gate); ``None`` adds nothing.
        bias_rows: ``[queries]`` 1 at the query rows that ``key_bias`` is added to, 0 elsewhere; ``None``: at all.
        logits: after the call, those of ``span``: ``[B, H, R, keys]``, ``q.k`` times the layer's scaling, unmasked.
        rows: ``[B, R]`` indices of further query rows to capture, which may differ by sample; ``None`` for none.
        rows_logits: after the call, those of ``rows``: ``[B, H, R, keys]``.
        rows_queries: after the call, the queries of ``rows``: ``[B, H, R, d]``.
        scaling: after the call, the layer's own.
    """

    span: slice | None = None
    key_bias: Tensor | None = None
    bias_rows: Tensor | None = None
    logits: Tensor | None = None
    rows: Tensor | None = None
    rows_logits: Tensor | None = None
    rows_queries: Tensor | None = None
    scaling: float = 1.0


def install(config: PretrainedConfig) -> None:
    """Make the attention that ``config`` (of a text decoder) names accept taps. Idempotent.

    Raises:
        GlimpseError: where transformers has no such implementation.
    """
    name = config._attn_implementation or "eager"
    if name in ("eager", TAPPED_EAGER):
        if TAPPED_EAGER not in ALL_ATTENTION_FUNCTIONS:
            AttentionInterface.register(TAPPED_EAGER, _wrap(_module_eager))
            AttentionMaskInterface.register(TAPPED_EAGER, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        config._attn_implementation = TAPPED_EAGER
    elif name not in ALL_ATTENTION_FUNCTIONS:
        raise GlimpseError(
            f"Expected an attention implementation that transformers has registered, but the model has {name!r}; load "
            "it with `attn_implementation='sdpa'`."
        )
    elif not hasattr(ALL_ATTENTION_FUNCTIONS[name], "untapped"):
        AttentionInterface.register(name, _wrap(ALL_ATTENTION_FUNCTIONS[name]))


def uninstall(config: PretrainedConfig) -> None:
    """Undo :func:`install`: the configuration and the registry are as Hugging Face made them."""
    name = config._attn_implementation
    if name == TAPPED_EAGER:
        config._attn_implementation = "eager"
    elif name in ALL_ATTENTION_FUNCTIONS and hasattr(ALL_ATTENTION_FUNCTIONS[name], "untapped"):
        AttentionInterface.register(name, ALL_ATTENTION_FUNCTIONS[name].untapped)


@contextmanager
def observe(module: nn.Module, observer: Observer) -> Iterator[None]:
    """While the context is open, ``observer`` sees every call that the attention ``module`` makes of its kernel in this
    thread.
    """
    with while_in_use(("attention", id(module.config)), partial(_tapped, module.config)):
        observers = _observers.of.setdefault(id(module), [])
        observers.append(observer)
        try:
            yield
        finally:
            observers.remove(observer)
            if not observers:
                del _observers.of[id(module)]


def _tapped(config: Any) -> Callable[[], None]:
    """Have ``config``'s attention accept taps; returns the function that restores it."""
    name = config._attn_implementation
    tapped_before = hasattr(ALL_ATTENTION_FUNCTIONS.get(name or "eager", None), "untapped")
    install(config)

    def undo() -> None:
        if not tapped_before:
            uninstall(config)
        config._attn_implementation = name

    return undo


def _module_eager(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


def _wrap(attend: Callable[..., Any]) -> Callable[..., Any]:
    def tapped(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *args: Any,
        glimpse_tap: AttentionTap | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        for observer in _observers.of.get(id(module), ()):
            observer(query, key, attention_mask, kwargs)
        if glimpse_tap is None:
            return attend(module, query, key, value, attention_mask, *args, **kwargs)
        scaling = kwargs.pop("scaling", None)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if glimpse_tap.span is not None:
            glimpse_tap.logits = row_logits(query[:, :, glimpse_tap.span], key) * scaling
        if glimpse_tap.rows is not None:
            index = glimpse_tap.rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
            glimpse_tap.rows_queries, glimpse_tap.scaling = query.gather(2, index), scaling
            glimpse_tap.rows_logits = row_logits(glimpse_tap.rows_queries, key) * scaling
        head_dim = value.shape[-1]
        if glimpse_tap.key_bias is not None:
            query, key, value = _fold_bias(query, key, value, glimpse_tap.key_bias / scaling, glimpse_tap.bias_rows)
        output, weights = attend(module, query, key, value, attention_mask, *args, scaling=scaling, **kwargs)
        return output[..., :head_dim], weights

    tapped.untapped = attend  # type: ignore[attr-defined]
    return tapped


def row_logits(query_BHRd: Tensor, key_BGNd: Tensor) -> Tensor:
    """``q.k`` of ``R`` query rows with all keys: ``[B, H, R, N]``; a key head serves ``H / G`` query heads."""
    batch, heads, rows, dim = query_BHRd.shape
    grouped = query_BHRd.reshape(batch, key_BGNd.shape[1], -1, dim)
    return (grouped @ key_BGNd.transpose(-1, -2)).reshape(batch, heads, rows, -1)


def _fold_bias(
    query: Tensor, key: Tensor, value: Tensor, bias_Bn: Tensor, rows_N: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a per-key bias as one more dimension of q and k: any kernel then adds it, without a mask of size N x N."""
    extra_key = F.pad(bias_Bn.to(key.dtype), (0, key.shape[2] - bias_Bn.shape[1]))
    extra_key = extra_key[:, None, :, None].expand(-1, key.shape[1], -1, 1)
    padding = -(query.shape[-1] + 1) % _HEAD_DIM_MULTIPLE
    ones = query.new_ones(1) if rows_N is None else rows_N.to(query.dtype)[:, None]
    query = F.pad(torch.cat([query, ones.expand(*query.shape[:-1], 1)], -1), (0, padding))
    key = F.pad(torch.cat([key, extra_key], -1), (0, padding))
    return query, key, F.pad(value, (0, padding + 1))
