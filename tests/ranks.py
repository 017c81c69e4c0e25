"""Two gloo ranks on this machine, for tests."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

WORLD = 2


def on_two_ranks(function: Callable[..., Any], folder: Path, *args: Any, timeout: float = 280) -> list[Any]:
    """What ``function(*args)`` returns on each of two ranks.

    Forked, so that nothing is imported anew, with the environment that a launcher such as torchrun leaves.

    Raises:
        TimeoutError: where the ranks wait for each other for ever.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.start_processes(
        _rank, (port, folder, function, args), nprocs=WORLD, join=False, start_method="fork"
    )
    assert context is not None
    end = time.monotonic() + timeout
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"the ranks did not finish within {timeout} s")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _rank(rank: int, port: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.save(function(*args), folder / f"rank{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
