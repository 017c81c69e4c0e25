"""Schedule: pure functions that assign cells to processes and devices, and the pool that runs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import torch

from glimpse_lightning.runtime.errors import GlimpseError

Slot = tuple[str, ...]
"""Devices of one process; without any it runs on the CPU."""

Job = tuple[str, ...]
"""Names of cells that one process runs, one after another."""


def visible_devices() -> list[str]:
    """Ids of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None and torch.cuda.is_available():
        return [name for name in given.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def slots(devices: Sequence[str], per_cell: int) -> list[Slot]:
    """Disjoint groups of ``per_cell`` devices; one empty group without any device.

    Raises:
        GlimpseError: where there are fewer devices than one cell needs.
    """
    if not devices:
        return [()]
    if per_cell > len(devices):
        raise GlimpseError(
            f"Expected at least `devices_per_cell` = {per_cell} visible GPUs, but there are {len(devices)}; lower it, "
            "or widen CUDA_VISIBLE_DEVICES."
        )
    return [tuple(devices[start : start + per_cell]) for start in range(0, len(devices) - per_cell + 1, per_cell)]


def jobs(cells: Mapping[str, str | None], processes: int) -> list[Job]:
    """Cells that may share a process, in at most ``processes`` equal parts; every other cell for itself.

    Args:
        cells: key by cell name, in order, equal for cells that may share a process; ``None`` where a cell shares none.
        processes: number of processes that can run at once.
    """
    groups: dict[tuple[str, str | None], list[str]] = {}
    for name, shared in cells.items():
        groups.setdefault((name if shared is None else "", shared), []).append(name)
    out = []
    for group in groups.values():
        size = -(-len(group) // processes)
        out += [tuple(group[start : start + size]) for start in range(0, len(group), size)]
    return out


def run_jobs(jobs: Sequence[Job], slots: Sequence[Slot], run: Callable[[Job, Slot], None]) -> None:
    """Run every job on a slot that no other job has at that time, as many at once as there are slots."""
    free: SimpleQueue[Slot] = SimpleQueue()
    for slot in slots:
        free.put(slot)

    def run_on_free_slot(job: Job) -> None:
        slot = free.get()
        try:
            run(job, slot)
        finally:
            free.put(slot)

    with ThreadPoolExecutor(len(slots)) as pool:
        for _ in pool.map(run_on_free_slot, jobs):
            pass  # raises a job's error
