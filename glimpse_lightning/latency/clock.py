"""Time on the model's device: CUDA events, which need no synchronisation in between, or the CPU's own clock."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor


class Clock:
    """Stamps moments on one device.

    Args:
        device: device of the model.
        kind: the clock on the CPU, ``wall`` or ``process``: the latter counts seconds that this process computed, over
            all of its threads, which other processes on the machine disturb less.
    """

    def __init__(self, device: torch.device, kind: str = "wall") -> None:
        self.device = device
        self.now = time.process_time if kind == "process" else time.perf_counter
        self.cuda = device.type == "cuda"

    def stamp(self) -> Any:
        """The present moment; on CUDA, the moment at which the device reaches this point of its stream."""
        if not self.cuda:
            return self.now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Seconds between two stamps, after :meth:`synchronise`."""
        return begin.elapsed_time(end) / 1e3 if self.cuda else end - begin

    def synchronise(self) -> None:
        """Wait until the device has done everything."""
        if self.cuda:
            torch.cuda.synchronize()


class TokenClock(LogitsProcessor):
    """Stamps every generated token: ``generate`` calls it once the token's logits are there.

    Args:
        clock: the clock of the stamps.

    Attributes:
        stamps: one per token.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.stamps: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Stamp the moment, and return ``scores`` unchanged."""
        self.stamps.append(self.clock.stamp())
        return scores
