"""Attention that each patch of a vision tower receives, computed from q and k without a map of all pairs.

Suffixes: ``B`` sequences (crops, images, windows), ``H`` heads, ``N`` patches, ``d`` head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from glimpse_lightning.core.visual_tokens import VisionAttention, VisionKeys
from glimpse_lightning.runtime.errors import GlimpseError

LOGITS = 2**24
"""Largest number of attention logits in memory at once (64 MiB), if one row fits."""


class AttentionReader:
    """Collects one tap's attention or keys from each attention call of a block.

    Args:
        tap: requested attention or keys.
        class_token: whether sequences start with a class token.
    """

    def __init__(self, tap: VisionAttention | VisionKeys, class_token: bool) -> None:
        self.tap = tap
        self.class_token = class_token
        self.calls: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, query: Tensor, key: Tensor, mask: Any, options: Mapping[str, Any]) -> None:
        """One call of the attention kernel with ``query`` and ``key`` ``[B, H, N, d]``."""
        if isinstance(self.tap, VisionKeys):
            self.calls.append(key.mean(1) if self.tap.heads == "mean" else key.transpose(1, 2).flatten(2))
            return
        ends = options.get("cu_seq_lens_q")
        sizes = [query.shape[2]] if ends is None else ends.diff().tolist()  # FlashAttention: all segments in one call
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        parts = zip(query.split(sizes, 2), key.split(sizes, 2), strict=True)
        attend = [self._received(q, k, scaling, mask) for q, k in parts]
        self.calls.append(torch.cat(attend, 1)[..., None])

    def _received(self, query: Tensor, key: Tensor, scaling: float, mask: Any) -> Tensor:
        assert isinstance(self.tap, VisionAttention)
        if self.tap.heads == "joint":
            query, key = (states.transpose(1, 2).flatten(2)[:, None] for states in (query, key))
            scaling = query.shape[-1] ** -0.5
        row = class_row if self.class_token and self.tap.queries == "class" else received
        return row(query, key, scaling, mask)

    def result(self, like: Tensor) -> Tensor:
        """The collected values, in the layout of ``like``, the block's output: ``[B, N, D]`` or ``[N, D]``."""
        states = torch.cat(self.calls, 1) if like.ndim == 2 else torch.cat(self.calls)
        self.calls.clear()
        return states.reshape(*like.shape[:-1], states.shape[-1])


def class_row(query: Tensor, key: Tensor, scaling: float, mask: Any = None) -> Tensor:
    """``[B, N]`` attention weights that the first token gives, averaged over heads."""
    return _weights(query[:, :, :1], key, scaling, _allowed(mask), slice(0, 1)).mean(1)[:, 0]


def received(query: Tensor, key: Tensor, scaling: float, mask: Any = None) -> Tensor:
    """``[B, N]`` attention weights that each token receives, summed over queries and averaged over heads.

    With a sum, the average over tokens is 1 for every sequence length. Padding neither gives nor receives attention.
    """
    batch, heads, length, _ = query.shape
    allowed = _allowed(mask)
    asks = None if allowed is None else allowed.any(2)[:, 0]  # [B, N]: a token that no query sees is padding
    total = query.new_zeros(batch, length, dtype=torch.float32)
    step = max(1, LOGITS // max(1, batch * heads * length))
    for start in range(0, length, step):
        rows = slice(start, start + step)
        weights = _weights(query[:, :, rows], key, scaling, allowed, rows).mean(1)
        total += (weights if asks is None else weights * asks[:, rows, None]).sum(1)
    return total


def _weights(query: Tensor, key: Tensor, scaling: float, allowed: Tensor | None, rows: slice) -> Tensor:
    logits = (query @ key.transpose(-1, -2)).float() * scaling
    if allowed is not None:
        seen = allowed[:, :, rows] if allowed.shape[2] > 1 else allowed
        logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
    return logits.softmax(-1)


def _allowed(mask: Any) -> Tensor | None:
    """``[B, 1, 1 or N, N]`` true where a query may attend to a key, from any kind of mask that kernels take."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise GlimpseError(
            f"Expected a vision tower's attention mask to be a tensor, but got {type(mask).__name__}; load the model "
            "with `attn_implementation='sdpa'`, or use a scorer that reads no vision attention."
        )
    if mask.ndim == 2:
        return mask.bool()[:, None, None]
    return mask if mask.dtype == torch.bool else mask >= 0


def attention_of(block: nn.Module) -> nn.Module:
    """The self-attention of a vision block."""
    for name in ("self_attn", "attn", "attention"):
        found = getattr(block, name, None)
        if isinstance(found, nn.Module) and hasattr(found, "config"):
            return found
    raise GlimpseError(
        "Expected a vision block with self-attention called `self_attn`, `attn` or `attention`, but "
        f"{type(block).__name__} has none; a scorer that reads vision attention cannot run on this model."
    )
