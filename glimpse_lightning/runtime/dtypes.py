"""Data types: lookup by torch's names, and whether this machine computes fast in them."""

from __future__ import annotations

import math
import time
import warnings
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from glimpse_lightning.runtime.errors import GlimpseError

AUTO: Final = "auto"
"""Setting that means half precision where the device is fast at it, and float32 elsewhere."""

SLOW = 3.0
"""A CPU is slow at a type whose matrix product takes more than this times float32's. Measured: 0.3 with AMX and up to 2
with AVX-512-BF16; 4 with AVX-512 alone, which converts; 7 to 40 with AVX2, whose fallback has no BLAS.
"""

_SIZE, _ROUNDS = 256, 5


def dtype_named(name: str) -> torch.dtype:
    """The data type of torch that is called ``name``.

    Raises:
        GlimpseError: if torch has no data type of that name.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise GlimpseError(f"Expected a data type of torch, such as float32 or bfloat16, but got {name!r}.")
    return found


@cache
def cost_on_cpu(dtype: torch.dtype) -> float:
    """Time of a matrix product in ``dtype`` on this CPU, as a multiple of float32's.

    The two types are timed in turn, and the shortest of five times counts, so that a busy machine changes little. The
    time is measured, because the processor's flags do not show kernels that an environment variable
    (``ONEDNN_MAX_CPU_ISA``, ``ATEN_CPU_CAPABILITY``) has turned off.

    Infinite where torch's attention fails in ``dtype``. This happens with AMX if only ``ATEN_CPU_CAPABILITY`` turns
    AVX-512 off.
    """
    states = torch.zeros(1, 1, 64, 32, dtype=dtype)
    try:
        F.scaled_dot_product_attention(states, states, states)
    except RuntimeError:
        return math.inf
    # A generator of its own: the global one has been seeded for the run.
    values = torch.randn(_SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
    pairs = [(_seconds(values.to(dtype)), _seconds(values)) for _ in range(_ROUNDS)]
    return min(half for half, _ in pairs) / min(whole for _, whole in pairs)


def _seconds(values: Tensor) -> float:
    start = time.perf_counter()
    F.linear(values, values)
    return time.perf_counter() - start


def is_fast(dtype: torch.dtype, device: str) -> bool:
    """Whether half-precision ``dtype`` is fast on a kind of ``device`` (``cpu``, ``cuda``, ...); true for all other
    types.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    if device == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and cost_on_cpu(dtype) <= SLOW


def fast_dtype(device: str, wanted: torch.dtype = torch.bfloat16) -> torch.dtype:
    """The meaning of ``auto`` on a kind of ``device``: ``wanted`` if it is fast there, else float32."""
    return wanted if is_fast(wanted, device) else torch.float32


def warn_if_slow(dtype: torch.dtype, device: str, what: str, remedy: str) -> None:
    """Warn that half precision is slow on ``device``.

    Args:
        dtype: data type of the computation.
        device: kind of device.
        what: setting that asks for it, or weights that are stored in it, with a verb: "`dtype` asks for".
        remedy: setting that avoids it.
    """
    if not is_fast(dtype, device):
        cost = f" (a matrix product takes {cost_on_cpu(dtype):.0f} times float32's)" if device == "cpu" else ""
        name = str(dtype).removeprefix("torch.")
        text = f"{what} {name}, which is slow on this {device}{cost}; {remedy} avoids it."
        warnings.warn(text, stacklevel=2)


def default_device() -> str:
    """The default kind of device: ``cuda`` or ``cpu``. MPS is left out because it lacks float64, in which budgets are
    computed.
    """
    return "cuda" if torch.cuda.is_available() else "cpu"
