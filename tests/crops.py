"""Inputs of models that cut images into crops, as their processors make them."""

from __future__ import annotations

import torch
from torch import Tensor

from glimpse_lightning.backbones.base import pad_rows

IMAGE = 5
"""Placeholder of a visual token in tests/tiny_models.py."""


def internvl_inputs(crops: list[list[int]], sizes: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Samples whose images have these numbers of crops, of 2 x 2 tokens each."""
    rows = [[20, *(token for count in sample for token in (7, *[IMAGE] * (4 * count), 8)), 21] for sample in crops]
    total = sum(map(sum, crops))
    inputs = pad_rows([torch.tensor(row) for row in rows], "left", 0)
    return inputs | {"pixel_values": torch.randn(total, 3, 16, 16), "image_sizes": torch.tensor(sizes)}
