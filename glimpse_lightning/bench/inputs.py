"""Batches of equally long random prompts, of a wanted number of visual and text tokens."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from glimpse_lightning.backbones.base import Backbone


def make_inputs(backbone: Backbone, batch: int, visual: int, text: int) -> dict[str, Any]:
    """Processor outputs of ``batch`` prompts without padding, on the model's device.

    Args:
        visual: number of visual tokens of each prompt; where a family's images have a fixed number, the nearest number
            of whole images.
        text: number of all other tokens of each prompt, those that the family's prompt needs around its images
            included; these are the minimum.
    """
    size = _near_square(visual)
    one = _placeholders(backbone, backbone.example_inputs([[size]]))
    images = [size] * max(1, round(visual / one))
    # The example's text length repeats with every third sample, so that these need no padding.
    rows = [backbone.example_inputs([images], first_sample=3 * index) for index in range(batch)]
    inputs = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    ids: Tensor = inputs["input_ids"]
    missing = max(0, text - (ids.shape[1] - _placeholders(backbone, rows[0])))
    inputs["input_ids"] = torch.cat([ids, ids[:, -1:].expand(-1, missing)], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def _placeholders(backbone: Backbone, inputs: dict[str, Any]) -> int:
    return int((inputs["input_ids"] == backbone.model.config.image_token_id).sum())


def _near_square(tokens: int) -> tuple[int, int]:
    """(height, width) of the most nearly square rectangle of ``tokens`` cells; of fewer, where it would be a strip."""
    for height in range(isqrt(tokens), 0, -1):
        if tokens % height == 0 and tokens // height <= 4 * height:
            return height, tokens // height
    return isqrt(tokens), isqrt(tokens)
