"""Where the reference's numbers lie, and how tests get at them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the reference's numbers are not at {GOLDEN}")
CASES = ("a_single", "c_batch2_leftpad", "d_max_remain_ratio", "d_threshold_hi_min5")


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """Tensors of ``<name>.safetensors``; fp16 as fp32. Skips the test where the file is absent."""
    path = GOLDEN / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"the reference's numbers are not at {path}")
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in load_file(path).items()}


@cache
def cases() -> dict[str, Any]:
    """``cases/index.json``."""
    return json.loads((GOLDEN / "cases" / "index.json").read_text())
