"""FLOPs (two per multiply-add) of the operators that ran, counted by torch."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def counter() -> FlopCounterMode:
    """``torch.utils.flop_counter`` with the CPU's attention kernel, which it leaves out.

    Attention is counted over all pairs, not halved for causality, as ``ModelFacts.layer_flops`` does. The external
    ``flash-attn`` package's kernels are unknown to it.
    """
    return FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: _attention})


def count_step(run: Callable[[], Any]) -> float:
    """FLOPs of a training step, backward pass included, by the same rules.

    ``FlopCounterMode`` follows modules with hooks, which fail on losses from side streams. Here the operators are
    added up without hooks.
    """
    with _Adder() as found:
        run()
    return float(found.total)


class _Adder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        rule = flop_registry.get(func.overloadpacket)
        if rule is not None:
            self.total += rule(*args, **(kwargs or {}), out_val=out)
        elif func.overloadpacket is _CPU_ATTENTION:
            self.total += _attention(args[0].shape, args[1].shape, args[2].shape)
        elif func.overloadpacket is _CPU_ATTENTION_BACKWARD:
            self.total += _attention_backward(args[1].shape, args[2].shape, args[3].shape)
        return out


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """``2 B H n m (d_qk + d_v)`` from shapes ``[B, H, n, d_qk]``, ``[B, G, m, d_qk]`` and ``[B, G, m, d_v]``."""
    return 2 * prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_backward(query: Any, key: Any, value: Any) -> int:
    """``2 B H n m (3 d_qk + 2 d_v)``: scores anew, and gradients of weights, values, queries and keys."""
    return 2 * prod(query[:3]) * key[2] * (3 * query[3] + 2 * value[3])
