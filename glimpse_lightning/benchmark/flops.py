"""FLOPs (two per multiply-add) as torch counts them in what really ran."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def counter() -> FlopCounterMode:
    """``torch.utils.flop_counter`` with the CPU's attention kernel, which it leaves out.

    Attention is counted over all pairs, not halved for causality, as ``ModelFacts.layer_flops`` does. The external
    ``flash-attn`` package's kernels are unknown to it.
    """
    return FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention})


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """``2 B H n m (d_qk + d_v)`` from shapes ``[B, H, n, d_qk]``, ``[B, G, m, d_qk]`` and ``[B, G, m, d_v]``."""
    return 2 * prod(query[:3]) * key[2] * (query[3] + value[3])
