"""From a command line to a run of a Trainer."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from glimpse_lightning.runtime.errors import no_attribute

_HOMES = {
    "main": "__main__",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise no_attribute(__name__, name, list(_HOMES))
    return getattr(import_module(f"glimpse_lightning.{_HOMES[name]}"), name)
