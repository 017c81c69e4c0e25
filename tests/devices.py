"""Where tests of a GPU run: on one, and on a pretended one, so that the normal tests rehearse them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from pretend_device import PretendDevice

import glimpse_lightning as gl
from glimpse_lightning.backbones.base import Backbone

PRETENDED, CUDA = "pretended", "cuda"
ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = [PRETENDED, pytest.param(CUDA, marks=ON_CUDA)]


class _Pretended(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Nothing: there is no such device."""


@contextmanager
def entered(device: str) -> Iterator[None]:
    """While it is entered, ``cuda`` is the device; float32 is computed in full there."""
    if device == PRETENDED:
        with PretendDevice():
            yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def trained_on(device: str) -> dict[str, Any]:
    """Arguments of a trainer."""
    if device == CUDA:
        return {"accelerator": "cuda"}
    return {"accelerator": "auto", "strategy": SingleDeviceStrategy(torch.device("cuda", 0), _Pretended())}


def glimpse_tiny() -> Backbone:
    """The embedded model on the device: loaded elsewhere, as Hugging Face asks a real one for its free memory."""
    with torch.device("cpu"):
        backbone = gl.load_backbone("glimpse-tiny")
    backbone.model.to("cuda")
    return backbone
