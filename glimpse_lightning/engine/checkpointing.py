"""Gradient checkpointing and key-value caches exclude each other in transformers; here the cache comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from glimpse_lightning.backbones.base import Backbone

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def caches_kept(backbone: Backbone) -> Iterator[None]:
    """While the context is open, decoder layers do not checkpoint.

    A layer that checkpoints (gradient checkpointing on, training mode) silently drops the cache that it is handed, and
    everything here reads caches: glimpse streams, answers, decoding.
    """
    decoder = (backbone.decoder, *backbone.layers)  # what is handed caches; all modules would take long to look through
    checkpointing = [module for module in decoder if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointing:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in checkpointing:
            module.gradient_checkpointing = True


def keeps_caches(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Run a method of an object with a ``backbone`` under :func:`caches_kept`."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with caches_kept(self.backbone):
            return method(self, *args, **kwargs)

    return run
