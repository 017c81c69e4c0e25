"""Settings of a model's image processor, changed by name, such as bounds on pixels, or padding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers.image_utils import PILImageResampling
from transformers.utils import is_torchvision_available

from glimpse_lightning.data.sample import BLANK
from glimpse_lightning.runtime.errors import GlimpseError, nearest

PIXELS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Bounds on the pixels of an image, and their keys in ``size`` of Qwen-VL's image processor."""

NO_SETTINGS = {
    "self", "images", "kwargs", "return_tensors", "disable_grouping", "return_row_col_info", "pad_size",
    "patch_size", "temporal_patch_size", "merge_size",
}  # fmt: skip
"""Parameters of an image processor's call that are no settings: inputs, outputs, and the model's own sizes."""


def with_settings(processor: Any, settings: Mapping[str, Any], name: str) -> Any:
    """``processor`` with a new image processor; unchanged without ``settings``.

    Args:
        processor: stock or image-only processor of a model; ``None``: the model has none.
        settings: new values by name. Bounds on pixels are named ``min_pixels`` and ``max_pixels``, or given as ``size``
            with ``shortest_edge`` and ``longest_edge``, as in transformers 5.
        name: name of the model, for errors.

    Raises:
        GlimpseError: if the processor has no such setting, a value is invalid, or there is no processor.
    """
    if not settings:
        return processor
    if processor is None:
        raise GlimpseError(
            f"Expected no {', '.join(settings)} for {name!r}: the model has no processor. Leave that out, or name a "
            "folder that holds one."
        )
    old = processor.image_processor
    kind = _kind(processor)
    known = known_settings(kind)
    for key in settings:
        if key not in known:
            raise GlimpseError(
                f"The image processor of {name!r} ({kind.__name__}) has no setting {key!r}.{nearest(key, known)} "
                f"Its settings are {', '.join(known)}."
            )
    try:
        if isinstance(settings.get("resample"), str):
            settings = {**settings, "resample": _filter(settings["resample"])}
        validate_typed_dict(kind.valid_kwargs, dict(settings))
        if "max_pixels" in known:
            settings = _sized(settings, old.to_dict()["size"])
        processor.image_processor = kind.from_dict({**old.to_dict(), **settings})
        processor.image_processor(images=list(BLANK.images))  # some settings fail only with an image
    except GlimpseError:
        raise
    except (StrictDataclassError, ValueError, TypeError, RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())
        raise GlimpseError(f"The image processor of {name!r} refuses {dict(settings)}: {reason}") from error
    _override(processor, settings)
    return processor


def _filter(name: str) -> int:
    """The number of a resampling filter of Pillow.

    Raises:
        GlimpseError: if there is no filter of that name.
    """
    names = [each.name.lower() for each in PILImageResampling]
    if name.lower() not in names:
        raise GlimpseError(f"Expected `resample` to be one of {', '.join(names)}, or its number, but got {name!r}.")
    return int(PILImageResampling[name.upper()])


def known_settings(kind: Any) -> list[str]:
    """Names of the settings that a class of image processors reads. The class accepts other names, too, and ignores
    them.
    """
    names = {*inspect.signature(kind._preprocess).parameters, "do_convert_rgb"} - NO_SETTINGS
    if kind._preprocess.__module__ == "transformers.image_processing_backends":
        names -= {"do_pad"}  # which pads to `pad_size`, after everything else
    return sorted(names | (PIXELS.keys() & kind.valid_kwargs.__annotations__.keys()))


def described(processor: Any) -> dict[str, Any]:
    """All settings of a processor's image processor by name, as a JSON file would hold them; empty if it is no class of
    Hugging Face's.
    """
    image: Any = getattr(processor, "image_processor", None)
    if not hasattr(image, "_preprocess"):
        return {}
    settings = {key: value for key, value in image.to_dict().items() if key in known_settings(type(image))}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


def _kind(processor: Any) -> Any:
    """The class of image processors that the settings apply to.

    Checkpoints of LLaVA-1.5 name CLIP's class, which crops. LLaVA's own class also crops, but can pad instead
    (``do_pad``).
    """
    kind = type(processor.image_processor)
    if type(processor).__name__ != "LlavaProcessor" or not kind.__name__.startswith("CLIPImageProcessor"):
        return kind
    if is_torchvision_available():
        from transformers.models.llava.image_processing_llava import LlavaImageProcessor

        return LlavaImageProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    return LlavaImageProcessorPil


def _sized(settings: Mapping[str, Any], size: Mapping[str, int]) -> dict[str, Any]:
    """``settings`` in which bounds on pixels, in either spelling, are one complete ``size``."""
    rest = {key: value for key, value in settings.items() if key not in PIXELS}
    given = dict(rest.get("size", {}))
    for name, key in PIXELS.items():
        if name in settings and given.setdefault(key, settings[name]) != settings[name]:
            raise GlimpseError(
                f"Expected `{name}` or `size: {{{key}: ...}}`, which are the same bound, but got {settings[name]} and "
                f"{given[key]}; leave one out."
            )
    if other := sorted(given.keys() - {*PIXELS.values()}):
        raise GlimpseError(f"Expected `size` with {' and '.join(PIXELS.values())} only, but got {', '.join(other)}.")
    size = {**size, **given}
    least, most = (size[key] for key in PIXELS.values())
    if not 0 < least <= most:
        raise GlimpseError(
            f"Expected `min_pixels` above 0 and at most `max_pixels`, but got {least} and {most}. The one that is left "
            "out keeps the processor's own value: give both."
        )
    return {**rest, "size": size}


def _override(processor: Any, settings: Mapping[str, Any]) -> None:
    """Apply ``settings`` to the defaults of the processor itself, which override those of its image processor.

    Raises:
        GlimpseError: if an old version of transformers allows overriding these defaults in each call only.
    """
    fixed = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {}).get("images_kwargs", {})
    for key in settings.keys() & fixed.keys():
        if settings[key] != fixed[key]:
            raise GlimpseError(
                f"{type(processor).__name__} of this version of transformers always sets `{key}` to {fixed[key]}; "
                "update transformers, or leave it out."
            )
    own = getattr(processor, "images_kwargs", {})
    if changed := settings.keys() & own.keys():
        processor.images_kwargs = {**own, **{key: settings[key] for key in changed}}
