"""Comparison of two models' weights by a sample of some hundreds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from glimpse_lightning.backbones.base import Backbone

Fingerprint = dict[str, list[float]]
"""Some weights of some parts of a model, rounded to bfloat16."""

_WEIGHTS = 8  # of each tensor of a part
_ALIKE = 0.9  # share of equal weights required in float16, which rounds differently from bfloat16


@torch.no_grad()
def fingerprint(backbone: Backbone) -> Fingerprint:
    """Weights of a model, spread over its parts; parts that are quantized, sharded or not loaded are left out.

    All tensors of a part are sampled, because training may have changed one kind of tensor alone. Weights are rounded
    to bfloat16, so that a model has the same fingerprint in float32 and in bfloat16. Adapters that are not merged are
    left out.
    """
    parts: dict[str, nn.Module] = {"embeddings": backbone.model.get_input_embeddings(), "head": backbone.lm_head}
    for name, layers in (("decoder", backbone.layers), ("vision", getattr(backbone, "vision_blocks", ()))):
        for index in sorted({0, len(layers) // 2, len(layers) - 1} & {*range(len(layers))}):
            parts[f"{name} {index}"] = layers[index]
    return {
        f"{part} {name.replace('base_layer.', '')}": _some(weight)  # PEFT's name for the adapted layer
        for part, module in parts.items()
        for name, weight in module.named_parameters()
        if "lora_" not in name and _plain(weight)
    }


def _plain(weight: Tensor) -> bool:
    return weight.is_floating_point() and not weight.is_meta and not hasattr(weight, "to_local") and weight.numel() > 0


def _some(weight: Tensor) -> list[float]:
    places = torch.linspace(0, weight.numel() - 1, _WEIGHTS, dtype=torch.float64).round().long()
    chosen = weight.reshape(-1)[places.to(weight.device)]
    return chosen.to(torch.bfloat16).float().cpu().tolist()


def same_weights(one: Fingerprint, other: Fingerprint, dtype: Any) -> bool:
    """Whether two fingerprints agree in the parts that both have.

    Args:
        dtype: data type of the loaded model; in float16 some weights may differ by rounding.
    """
    shared = one.keys() & other.keys()
    pairs = [pair for name in shared for pair in zip(one[name], other[name], strict=True)]
    if not pairs:
        return True
    equal = sum(a == b for a, b in pairs) / len(pairs)
    return equal == 1 or (dtype == torch.float16 and equal >= _ALIKE)
