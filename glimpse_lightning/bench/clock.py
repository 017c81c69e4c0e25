"""Time on the device that works: CUDA events, which need no synchronisation in between, or the CPU's own clock."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor


class Clock:
    """Stamps moments on one device.

    Args:
        device: where the model runs.
        kind: on the CPU, ``wall`` or ``process``: seconds that this process computed, over all of its threads, which
            other processes on the machine disturb less.
    """

    def __init__(self, device: torch.device, kind: str = "wall") -> None:
        self.device = device
        self.now = time.process_time if kind == "process" else time.perf_counter
        self.cuda = device.type == "cuda"

    def stamp(self) -> Any:
        """This moment; on CUDA, the moment at which the device gets here."""
        if not self.cuda:
            return self.now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two stamps, after :meth:`synchronise`."""
        return begin.elapsed_time(end) / 1e3 if self.cuda else end - begin

    def synchronise(self) -> None:
        """Wait until the device has done everything."""
        if self.cuda:
            torch.cuda.synchronize()


class TokenClock(LogitsProcessor):
    """Stamps every generated token: ``generate`` calls it once the token's logits are there.

    Args:
        clock: to stamp with.

    Attributes:
        stamps: one per token.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.stamps: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The ``scores`` as they are."""
        self.stamps.append(self.clock.stamp())
        return scores
