"""The precision of a run: what ``auto`` in a recipe stands for on this machine, and whether anything else is slow."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from glimpse_lightning.backbones.load import auto_dtype
from glimpse_lightning.dtypes import AUTO, cost_on_cpu, default_device, fast_dtype, warn_if_slow

HALVES = {"bf16": torch.bfloat16, "16": torch.float16}
"""Half-precision types by how Lightning's names of precisions begin."""


def device_of(accelerator: Any) -> str:
    """The kind of device that the Trainer's argument ``accelerator`` leads to."""
    if isinstance(accelerator, str) and accelerator not in ("auto", "gpu"):
        return accelerator
    return default_device()


def auto_precision(device: str) -> Literal["bf16-mixed", "32-true"]:
    """``bf16-mixed`` where a kind of ``device`` is fast at bfloat16, else ``32-true``."""
    return "bf16-mixed" if fast_dtype(device) == torch.bfloat16 else "32-true"


def settle(config: Any) -> str:
    """Put what ``auto`` stands for into a parsed configuration, in place: ``trainer.precision``, ``model.dtype``, and
    ``trainer.accelerator`` where Lightning would take a Mac's MPS.

    Explicit values stay as they are. A warning says where a precision is slow on this machine; loading the model warns
    of its data type.

    Returns:
        The precision in words, with the reason where ``auto`` has chosen it.
    """
    asked = config.trainer.precision
    device = device_of(config.trainer.accelerator)
    if config.trainer.accelerator == AUTO and torch.backends.mps.is_available():
        config.trainer.accelerator = device
    if asked == AUTO:
        config.trainer.precision = auto_precision(device)
    elif (half := HALVES.get(str(asked).partition("-")[0])) is not None:
        warn_if_slow(half, device, "trainer.precision")
    model = config.model.get("init_args") or config.model
    if model.get("dtype") == AUTO and isinstance(model.get("backbone"), str):
        model["dtype"] = str(auto_dtype(model["backbone"], device)).removeprefix("torch.")
    said = f"{config.trainer.precision or '32-true'} on {device}"
    if asked != AUTO or device != "cpu":
        return said
    cost = cost_on_cpu(torch.bfloat16)
    if math.isinf(cost):
        return f"{said}; here attention in bfloat16 fails"
    return f"{said}; here a matrix product in bfloat16 takes {cost:.1f} times float32's"
