"""Data workers end with the process that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.util import Finalize

PERIOD = 1.0  # seconds


def end_with_parent(worker: int) -> None:
    """Have this worker process end soon after its parent and not before, for ``DataLoader(worker_init_fn=...)``.

    Schedulers, ``timeout`` and Ctrl-C signal whole process groups. A worker that they end would take the parent's next
    batch along, before that has saved anything: what asks to stop is the parent's alone to heed.

    PyTorch's own watchdog ends the worker's loop when the parent was killed; but the worker then waits for its results
    to be written into a pipe whose reading end it has inherited itself, so that a batch larger than the pipe (64 KiB)
    keeps it for ever, with all files that it holds open.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def kill_at_exit() -> None:
    """Have this process kill workers that are left when it ends, for a process that starts some.

    Python asks them to end by SIGTERM, which they ignore, and then waits for them.
    """
    if os.getpid() not in _ends_workers:
        _ends_workers.add(os.getpid())
        Finalize(None, _kill_workers, exitpriority=100)  # unlike atexit, also at the end of a forked process


_ends_workers: set[int] = set()


def _kill_workers() -> None:
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD)
    os._exit(1)  # at once: what `sys.exit` waits for is the write that nobody reads
