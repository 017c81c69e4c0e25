"""Peak memory of a pass above the memory in use before it (the weights)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

CUDA_WAY = "torch.cuda.max_memory_allocated less memory_allocated before the pass"
CPU_WAY = "largest running sum of the CPU allocator's events (torch.profiler, profile_memory=True)"


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that tensors made during ``run`` take at once.

    On CUDA the allocator reports them (``CUDA_WAY``). On the CPU the allocator's events are added up (``CPU_WAY``):
    resident memory does not fall there when memory is freed.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = trace.profiler.kineto_results.events()  # the public table loses their order
    allocations = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = most = 0
    for _, change in allocations:
        now += change
        most = max(most, now)
    return most
