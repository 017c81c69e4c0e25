"""Gradient checkpointing switched off while caches are read: in transformers each excludes the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from glimpse_lightning.engine.decoder import Decoder
from glimpse_lightning.engine.in_use import while_in_use

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def caches_kept(decoder: Decoder) -> Iterator[None]:
    """While the context is open, decoder layers do not checkpoint.

    A layer that checkpoints (gradient checkpointing on, training mode) silently drops the cache that it is given.
    Glimpse streams, answers and decoding read that cache.
    """

    def rest() -> Callable[[], None]:
        handed = (decoder.decoder, *decoder.layers)  # the modules that take caches; looking at all would take long
        checkpointing = [module for module in handed if getattr(module, "gradient_checkpointing", False)]

        def switch(on: bool) -> None:
            for module in checkpointing:
                module.gradient_checkpointing = on

        switch(False)
        return partial(switch, True)

    with while_in_use(("checkpointing", id(decoder.model)), rest):
        yield


def keeps_caches(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Run a method of an object with a ``backbone`` under :func:`caches_kept`."""

    @wraps(method)
    def run(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        with caches_kept(self.backbone):
            return method(self, *args, **kwargs)

    return run
