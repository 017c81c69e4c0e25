"""The time of a prefill, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

ROWS = 12


def summary(run: Callable[[], Any], device: torch.device, rows: int = ROWS) -> dict[str, Any]:
    """The operators that take most time by themselves, from ``torch.profiler``.

    Returns:
        ``seconds`` (of all operators; on CUDA of the device), ``calls`` (of all), and ``operators``: ``name``,
        ``calls``, ``share`` of the time; the rest of the operators are summed up in the last of them.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as trace:
        run()
        if cuda:
            torch.cuda.synchronize()
    operators = [e for e in trace.key_averages() if e.device_type == DeviceType.CPU]  # kernels have rows of their own
    spent = [(e.key, e.count, e.self_device_time_total if cuda else e.self_cpu_time_total) for e in operators]
    spent.sort(key=lambda one: -one[2])
    total = sum(time for *_, time in spent) or 1.0
    rest = ("others", sum(count for _, count, _ in spent[rows:]), sum(time for *_, time in spent[rows:]))
    return {
        "seconds": total / 1e6,
        "calls": sum(count for _, count, _ in spent),
        "operators": [
            {"name": name, "calls": count, "share": time / total} for name, count, time in [*spent[:rows], rest]
        ],
    }


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """A variant's Markdown table."""
    table = [f"| {one['name']} | {one['calls']} | {one['share']:.1%} |" for one in found["operators"]]
    head = f"`{name}`: {found['seconds'] * 1e3:,.4g} ms in {found['calls']} calls"
    return [head, "", "| operator | calls | share of time |", "| --- | --- | --- |", *table, ""]
