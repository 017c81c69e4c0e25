"""Loading and wrapping backbones."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.presets import PREFIX, random_model
from glimpse_lightning.backbones.processing import load_processor
from glimpse_lightning.errors import GlimpseError

TINY = "glimpse-tiny"
QUANTIZATIONS = ("bnb-4bit", "bnb-8bit")


def load_backbone(
    name: str,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | dict[str, str] = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    quantization: str | None = None,
    prune_video: bool = True,
    **kwargs: Any,
) -> Backbone:
    """Load a model and its processor as a backbone.

    Args:
        name: ``"glimpse-tiny"`` (embedded, no download), a hub id, a folder, or ``"random:<preset>"``: a published
            architecture with random weights and no processor, to measure speed without a download.
        dtype: weights' data type.
        attn_implementation: any of transformers' (``sdpa``, ``eager``, ``flash_attention_2``, ...), or a dict of one
            for each part of the model (``text_config``, ``vision_config``).
        device_map: as in ``from_pretrained``; random weights are created directly on one device (``"cuda"``).
        quantization: ``"bnb-4bit"`` or ``"bnb-8bit"`` (needs bitsandbytes); ``None`` for none.
        prune_video: whether tokens of videos are items that a pruner sees; else they are kept, as the reference does.
        **kwargs: further arguments of ``from_pretrained``.

    Raises:
        GlimpseError: where there is no such model, or no adapter for its architecture.
    """
    if name.startswith(PREFIX):
        options = sorted([*kwargs, "quantization"] if quantization else kwargs)
        if options:
            raise GlimpseError(f"Expected no {', '.join(options)} with the random weights of {name!r}; leave them out.")
        backbone = wrap_backbone(random_model(name, dtype, attn_implementation, device_map), prune_video=prune_video)
        backbone.name = name
        return backbone
    if quantization is not None:
        kwargs["quantization_config"] = _quantization_config(quantization, dtype)
    source = str(Path(__file__).parent / "glimpse_tiny") if name == TINY else name
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, attn_implementation=attn_implementation, device_map=device_map, **kwargs
        )
        processor = load_processor(source)
    except GlimpseError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise GlimpseError(
            f"Could not load backbone {name!r}: {str(error).strip().splitlines()[0]} Expected {TINY!r}, a hub id, a "
            f"folder that `from_pretrained` can read (without network, download the model first and give its folder), "
            f"or {PREFIX}<preset>."
        ) from error
    backbone = wrap_backbone(model.eval(), processor, prune_video)
    backbone.name = name
    return backbone


def wrap_backbone(model: PreTrainedModel, processor: Any | None = None, prune_video: bool = True) -> Backbone:
    """Make a backbone of an already loaded Hugging Face model; the model is not changed.

    Args:
        model: a supported model.
        processor: its processor; ``None`` where ready tensor batches are fed.
        prune_video: whether tokens of videos are items that a pruner sees; else they are kept, as the reference does.

    Raises:
        GlimpseError: where no adapter knows the model's class.
    """
    families = {
        name: family
        for family in _families(Backbone)  # type: ignore[type-abstract]
        for name in family.architectures
    }
    architecture = type(model).__name__
    if architecture not in families:
        raise GlimpseError(
            f"No backbone adapter for {architecture}. Supported: {', '.join(sorted(families))}. "
            "To add one, subclass glimpse_lightning.backbones.base.Backbone and import your module first."
        )
    return families[architecture](model, processor, prune_video)


def _families(base: type[Backbone]) -> list[type[Backbone]]:
    return [family for child in base.__subclasses__() for family in [child, *_families(child)]]


def _quantization_config(name: str, dtype: str | torch.dtype) -> BitsAndBytesConfig:
    if name not in QUANTIZATIONS:
        raise GlimpseError(
            f"Expected `quantization` to be one of {', '.join(QUANTIZATIONS)} or None, but got {name!r}."
        )
    if find_spec("bitsandbytes") is None:
        raise GlimpseError(
            f"`quantization={name!r}` needs bitsandbytes, which is not installed: `pip install bitsandbytes`."
        )
    if name == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if compute == "auto" else compute,
    )
