"""From a command line to a run of a Trainer."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "main": "__main__",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"glimpse_lightning.{_HOMES[name]}"), name)
