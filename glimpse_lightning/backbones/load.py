"""Loading and wrapping backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.processing import load_processor
from glimpse_lightning.errors import GlimpseError

TINY = "glimpse-tiny"


def load_backbone(
    name: str,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    **kwargs: Any,
) -> Backbone:
    """Load a model and its processor as a backbone.

    Args:
        name: ``"glimpse-tiny"`` (embedded, no download), a hub id, or a folder.
        dtype: weights' data type.
        attn_implementation: any of transformers' (``sdpa``, ``eager``, ``flash_attention_2``, ...).
        device_map: as in ``from_pretrained``.
        **kwargs: further arguments of ``from_pretrained``.

    Raises:
        GlimpseError: where there is no such model, or no adapter for its architecture.
    """
    source = str(Path(__file__).parent / "glimpse_tiny") if name == TINY else name
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, attn_implementation=attn_implementation, device_map=device_map, **kwargs
        )
        processor = load_processor(source)
    except (OSError, ValueError, ImportError) as error:
        raise GlimpseError(
            f"Could not load backbone {name!r}: {str(error).strip().splitlines()[0]} Expected {TINY!r}, a hub id, or a "
            "folder that `from_pretrained` can read (without network, download the model first and give its folder)."
        ) from error
    backbone = wrap_backbone(model.eval(), processor)
    backbone.name = name
    return backbone


def wrap_backbone(model: PreTrainedModel, processor: Any | None = None) -> Backbone:
    """Make a backbone of an already loaded Hugging Face model; the model is not changed.

    Raises:
        GlimpseError: where no adapter knows the model's class.
    """
    families = {name: family for family in _families(Backbone) for name in family.architectures}
    architecture = type(model).__name__
    if architecture not in families:
        raise GlimpseError(
            f"No backbone adapter for {architecture}. Supported: {', '.join(sorted(families))}. "
            "To add one, subclass glimpse_lightning.backbones.base.Backbone and import your module first."
        )
    return families[architecture](model, processor)


def _families(base: type[Backbone]) -> list[type[Backbone]]:
    return [family for child in base.__subclasses__() for family in [child, *_families(child)]]
