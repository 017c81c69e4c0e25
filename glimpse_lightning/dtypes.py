"""Data types by their names in torch."""

from __future__ import annotations

import torch

from glimpse_lightning.errors import GlimpseError


def dtype_named(name: str) -> torch.dtype:
    """The data type of torch that is called ``name``.

    Raises:
        GlimpseError: where there is none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise GlimpseError(f"Expected a data type of torch, such as float32 or bfloat16, but got {name!r}.")
    return found
