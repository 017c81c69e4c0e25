"""The reference's numbers, in ``tests/golden/``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent / "golden"

CASES = ("a_single", "c_batch2_leftpad", "d_max_remain_ratio", "d_threshold_hi_min5")


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """Tensors of ``<name>.safetensors``; fp16 as fp32."""
    loaded = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in loaded.items()}


@cache
def cases() -> dict[str, Any]:
    """``cases/index.json``."""
    return json.loads((GOLDEN / "cases" / "index.json").read_text())
