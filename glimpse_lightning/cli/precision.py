"""The precision of a run: the meaning of ``auto`` on this machine, and a warning where another value is slow."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Literal

import torch

from glimpse_lightning.backbones.load import auto_dtype, own_dtype
from glimpse_lightning.runtime.dtypes import AUTO, cost_on_cpu, default_device, fast_dtype, warn_if_slow
from glimpse_lightning.runtime.errors import GlimpseError

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
    """Replace ``auto`` in a parsed configuration, in place: ``trainer.precision``, ``model.dtype``, and
    ``trainer.accelerator`` where Lightning would take a Mac's MPS.

    Explicit values stay unchanged. A warning says where a precision is slow on this machine; loading the model warns
    of its data type. Without an explicit data type, weights that were saved in one half-precision type are loaded in
    that of a mixed precision.

    Returns:
        The precision in words, with the reason where ``auto`` has chosen it.

    Raises:
        GlimpseError: where two half-precision types are asked for together.
    """
    asked = config.trainer.precision
    device = device_of(config.trainer.accelerator)
    if config.trainer.accelerator == AUTO and torch.backends.mps.is_available():
        config.trainer.accelerator = device
    if asked == AUTO:
        config.trainer.precision = auto_precision(device)
    elif (half := HALVES.get(str(asked).partition("-")[0])) is not None:
        warn_if_slow(half, device, "`trainer.precision` asks for", "`--trainer.precision auto`")
    _settle_dtype(config.model.get("init_args") or config.model, config.trainer.precision, device)
    said = f"{config.trainer.precision or '32-true'} on {device}"
    if asked != AUTO or device != "cpu":
        return said
    cost = cost_on_cpu(torch.bfloat16)
    if math.isinf(cost):
        return f"{said}; here attention in bfloat16 fails"
    return f"{said}; here a matrix product in bfloat16 takes {cost:.2g} times float32's"


def _settle_dtype(model: Any, precision: Any, device: str) -> None:
    """Set a model's data type for ``auto``, in place; and that of a mixed ``precision`` where the weights would be of
    the other half-precision type, since torch does not mix the two.
    """
    backbone, asked = model.get("backbone"), model.get("dtype")
    if not isinstance(backbone, str):
        return
    where = {key: value for key, value in (model.get("source") or {}).items() if value is not None}
    if asked == AUTO:
        model["dtype"] = _name(auto_dtype(backbone, device, **where))
    kind, _, mixed = str(precision).partition("-")
    if mixed != "mixed" or kind not in HALVES:
        return
    own = model.get("dtype")
    with suppress(GlimpseError):  # loading says why it cannot be read
        own = own or _name(own_dtype(backbone, **where))
    if own not in map(_name, HALVES.values()) or own == _name(HALVES[kind]):
        return
    if asked not in (None, AUTO):
        raise GlimpseError(
            f"`model.dtype: {asked}` and `trainer.precision: {precision}` are two kinds of half precision, which torch "
            f"does not mix. Set `model.dtype: {_name(HALVES[kind])}`, or leave it out."
        )
    model["dtype"] = _name(HALVES[kind])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
