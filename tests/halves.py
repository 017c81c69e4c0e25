"""Half precision in tests."""

from __future__ import annotations

import math

import pytest
import torch

from glimpse_lightning.runtime.dtypes import cost_on_cpu

attends_in_bfloat16 = pytest.mark.skipif(
    math.isinf(cost_on_cpu(torch.bfloat16)),
    reason="ATEN_CPU_CAPABILITY turns AVX-512 off and ONEDNN_MAX_CPU_ISA does not: torch's attention in bfloat16 fails",
)
