"""Checks of a checkpoint's config.json for support, before any weights are read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.runtime.errors import GlimpseError

UNFIT = {
    "MllamaForConditionalGeneration": "it reads images through cross-attention, so its prompt has no visual tokens",
    "PaliGemmaForConditionalGeneration": "its whole prompt attends in both directions, which the engine does not do",
}
LLAVA = (
    "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf", "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-hf/llava-v1.6-vicuna-13b-hf", "llava-hf/llava-v1.6-mistral-7b-hf", "llava-hf/llava-v1.6-34b-hf",
)  # fmt: skip
INTERNVL = (
    *(f"OpenGVLab/InternVL3-{size}-hf" for size in ("1B", "2B", "8B", "14B", "38B", "78B")),
    *(f"OpenGVLab/InternVL3_5-{size}-HF" for size in ("1B", "2B", "4B", "8B", "14B", "38B")),
)
QWEN = tuple(f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B"))
ONEVISION = tuple(f"llava-hf/llava-onevision-qwen2-{size}-ov-hf" for size in ("0.5b", "7b", "72b"))
NEAREST = {
    "LlavaLlamaForCausalLM": LLAVA,
    "LlavaMistralForCausalLM": LLAVA,
    "LlavaQwenForCausalLM": ONEVISION,
    "InternVLChatModel": INTERNVL,
    "QWenLMHeadModel": QWEN,
    "Qwen2_5OmniModel": QWEN,
    "Qwen2_5OmniForConditionalGeneration": QWEN,
    "Qwen3VLMoeForConditionalGeneration": ("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
}
"""Architectures by their names in the authors' own code, and the nearest checkpoints of a supported architecture."""
DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")
"""Supported data types of weights."""
READY = "bitsandbytes"
"""The supported kind of quantized checkpoints: its layers keep the interface of plain ones on every device."""


def families() -> dict[str, type[Backbone]]:
    """Adapters by the architectures that they support, including adapters in a user's imported modules."""
    return {
        name: family
        for family in _below(Backbone)  # type: ignore[type-abstract]
        for name in family.architectures
    }


def _below(base: type[Backbone]) -> list[type[Backbone]]:
    return [family for child in base.__subclasses__() for family in [child, *_below(child)]]


def family_of(architecture: str, name: str = "") -> type[Backbone]:
    """The adapter for an architecture.

    Args:
        architecture: class name of the Hugging Face model, or of the authors' own model.
        name: hub id or folder, by which an error suggests the nearest supported checkpoint.

    Raises:
        GlimpseError: if no adapter supports the architecture.
    """
    known = families()
    if architecture in known:
        return known[architecture]
    if architecture in UNFIT:
        raise GlimpseError(f"Unsupported architecture {architecture}: {UNFIT[architecture]}. Choose another model.")
    near = ""
    if architecture in NEAREST:
        near = f" The nearest checkpoint that loads is {_nearest(architecture, name)}, judged by the name alone."
    raise _unsupported(architecture, name, near)


def _unsupported(architecture: str, name: str, why: str) -> GlimpseError:
    return GlimpseError(
        f"No backbone adapter for {architecture}{f', the architecture of {name!r}' * bool(name)}.{why} Supported: "
        f"{', '.join(sorted(families()))}. To add one, subclass glimpse_lightning.backbones.base.Backbone and import "
        "your module first: docs/your_own_model.md goes through it."
    )


def _sees(config: Mapping[str, Any]) -> bool:
    """Whether any field of a checkpoint's config.json is about images."""
    return any(word in key for key in config for word in ("vision", "visual", "image", "img", "mm_"))


def _nearest(architecture: str, name: str) -> str:
    """Of the suggested checkpoints of an architecture, the one whose name is most similar to ``name``."""

    def likeness(choice: str) -> float:
        return difflib.SequenceMatcher(None, name.rpartition("/")[2].lower(), choice.rpartition("/")[2].lower()).ratio()

    return max(NEAREST[architecture], key=likeness)


def checked(name: str, config: Any) -> dict[str, Any]:
    """A checkpoint's config.json, if the fields that are read here have the types that transformers writes.

    Raises:
        GlimpseError: if a field has another type; the message names the field, its value and the expected type.
    """
    if not isinstance(config, dict):
        raise GlimpseError(f"{name!r}: expected its config.json to hold fields by name, but got {config!r}.")
    architectures = config.get("architectures")
    listed = isinstance(architectures, list) and all(isinstance(each, str) for each in architectures)
    kinds = {
        "architectures": (architectures is None or listed, "a list of class names"),
        "model_type": (isinstance(config.get("model_type", ""), str), "a name"),
        "text_config": (isinstance(config.get("text_config") or {}, dict), "fields by name"),
        "quantization_config": (isinstance(config.get("quantization_config") or {}, dict), "fields by name"),
        "compression_config": (isinstance(config.get("compression_config") or {}, dict), "fields by name"),
    }
    for key in ("dtype", "torch_dtype"):
        kinds[key] = (str(config.get(key) or "auto").removeprefix("torch.") in DTYPES, f"one of {', '.join(DTYPES)}")
    for field, (right, wanted) in kinds.items():
        if not right:
            raise GlimpseError(
                f"{name!r}: expected `{field}` in its config.json to be {wanted}, but got {config[field]!r}; mend it."
            )
    return config


def check_checkpoint(name: str, config: Mapping[str, Any], quantization: str | None = None) -> None:
    """Raise an error if a checkpoint cannot be loaded.

    Args:
        name: hub id or folder, for errors.
        config: contents of its config.json.
        quantization: kind of quantization that loading adds.

    Raises:
        GlimpseError: if no adapter supports its architecture, or its quantization is not supported.
    """
    kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.get("model_type", ""))
    loaded = {kind} if isinstance(kind, str) else set(kind or ())
    named = config.get("architectures") or []
    # A user's subclass of a supported class loads as the supported class. Authors' own code has names such as
    # LlavaLlamaForCausalLM, under the model type of Hugging Face's Llava, with weights that do not fit that class.
    if loaded & families().keys() and all("ForConditionalGeneration" in each for each in named):
        named = []
    for architecture in named or sorted(loaded):
        if architecture in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) and not _sees(config):
            raise _unsupported(architecture, name, " It has no vision tower, so there are no visual tokens to prune.")
        family_of(architecture, name)
    parts = (config, config.get("text_config") or {})
    found = (part.get(key) for part in parts for key in ("quantization_config", "compression_config"))
    _check_quantized(name, next(filter(None, found), None), quantization)


def _check_quantized(name: str, found: Mapping[str, Any] | None, quantization: str | None) -> None:
    if found is None:
        return
    method = str(found.get("quant_method") or "an unknown method").lower()
    if method != READY:
        raise GlimpseError(
            f"{name!r} is quantized by {method}, which has not been run here. Load the checkpoint that it was made "
            f"from (often the same name without its ending), in Python with `quantization='bnb-4bit'` where memory is "
            f"short; of quantized checkpoints those of {READY} load."
        )
    if quantization is not None:
        raise GlimpseError(f"{name!r} is quantized already, by {READY}; leave `quantization={quantization!r}` out.")
    if missing := [package for package in (READY, "accelerate") if find_spec(package) is None]:
        raise GlimpseError(
            f"{name!r} is quantized by {READY} and needs {' and '.join(missing)}: `pip install "
            "'glimpse-lightning[quantization]'`."
        )
