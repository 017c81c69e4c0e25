"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: workers of pytest-xdist share the cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)
gc.set_threshold(20_000, 20, 20)  # building a parser is a sixth faster: it creates many small objects


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """No test leaves environment variables or handlers of signals that change what the next one does, or a process
    group. A run that is killed from inside cannot put its handlers back.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    watched = ("GLIMPSE_", "PL_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
    before = {name: value for name, value in os.environ.items() if name.startswith(watched)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    after = {name: value for name, value in os.environ.items() if name.startswith(watched)}
    for name in after.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    leaked = {name for name in after.keys() - before.keys() if not name.startswith("PL_")}
    assert not leaked, f"environment variables left behind: {leaked}"
    assert not torch.distributed.is_initialized(), "process group left behind"
