"""Termination of data workers together with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.util import Finalize

PERIOD = 1.0  # seconds


def end_with_parent(worker: int) -> None:
    """Make this worker process end soon after its parent and not before; for ``DataLoader(worker_init_fn=...)``.

    Schedulers, ``timeout`` and Ctrl-C signal whole process groups. If a worker ended on the signal, the parent would
    lose its next batch before it has saved its state. Workers therefore ignore the signals, and only the parent reacts.

    If the parent is killed, PyTorch's own watchdog ends the worker's loop. The worker then waits until its results are
    written into a pipe whose reading end it has inherited itself. A batch larger than the pipe (64 KiB) blocks this
    write, so the worker would never end and would keep its files open.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def kill_at_exit() -> None:
    """Make this process, which starts workers, kill the remaining ones when it ends.

    Otherwise Python sends them SIGTERM, which they ignore, and waits for them.
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
    os._exit(1)  # at once: `sys.exit` would wait for a write that no process reads
