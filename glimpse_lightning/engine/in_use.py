"""Changes to objects that threads share: made by the first thread that needs one, undone by the last."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()  # held while counting, never while something runs
_changes: dict[Hashable, tuple[int, Callable[[], None]]] = {}


@contextmanager
def while_in_use(key: Hashable, change: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Hold a change while any thread is inside with this ``key``.

    Args:
        key: name of the change.
        change: function that makes the change, and returns the function that undoes it.
    """
    with _lock:
        users, undo = _changes.get(key) or (0, change())
        _changes[key] = users + 1, undo
    try:
        yield
    finally:
        with _lock:
            users, undo = _changes.pop(key)
            if users > 1:
                _changes[key] = users - 1, undo
            else:
                undo()
