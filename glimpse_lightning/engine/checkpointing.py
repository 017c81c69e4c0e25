"""Gradient checkpointing and key-value caches exclude each other in transformers; here the cache comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def caches_kept(model: nn.Module) -> Iterator[None]:
    """While the context is open, layers of ``model`` do not checkpoint.

    A layer that checkpoints (gradient checkpointing on, training mode) silently drops the cache that it is handed, and
    everything here reads caches: glimpse streams, answers, decoding.
    """
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointing:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in checkpointing:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def keeps_caches(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Run a method of an object with a ``model`` under :func:`caches_kept`."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with caches_kept(self.model):
            return method(self, *args, **kwargs)

    return run
