"""Loading and wrapping backbones."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.backbones.embedded import EMBEDDED, source_of
from glimpse_lightning.backbones.presets import PREFIX, random_model
from glimpse_lightning.backbones.processing import installing, load_processor
from glimpse_lightning.backbones.processor_settings import with_settings
from glimpse_lightning.backbones.shares import empty_model
from glimpse_lightning.backbones.support import check_checkpoint, checked, family_of
from glimpse_lightning.runtime.dtypes import AUTO, default_device, dtype_named, fast_dtype, warn_if_slow
from glimpse_lightning.runtime.errors import GlimpseError, check_arguments
from glimpse_lightning.runtime.paths import expanded
from glimpse_lightning.runtime.source import located

QUANTIZATIONS = ("bnb-4bit", "bnb-8bit")
LOADING = ("backbone", "dtype", "attn_implementation", "processor", "source")
"""Keys of a recipe's ``model`` that choose the backbone and its loading."""
SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")


def load_backbone(
    name: str,
    dtype: str | torch.dtype | None = "float32",
    attn_implementation: str | dict[str, str] = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    quantization: str | None = None,
    prune_video: bool = True,
    processor: Mapping[str, Any] | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    **kwargs: Any,
) -> Backbone:
    """Load a model and its processor as a backbone.

    Args:
        name: ``"glimpse-tiny"``, ``"glimpse-dense"`` or ``"glimpse-llava"`` (embedded, no download), a hub id, a folder
            (a model without a processor takes ready tensor batches), or ``"random:<preset>"``: a published architecture
            with random weights and no processor, to measure speed without a download.
        dtype: data type of the weights, as torch's type or its name. ``None``, the default of recipes: the type in
            which the weights were saved, by config.json; float32 if config.json names no type, for embedded models
            and for random weights. ``auto``: the type in which the weights were saved, but float32 in place of half
            precision if the device is slow at it (the device of ``device_map``, else a GPU if there is one); random
            weights count as saved in bfloat16, like the published ones.
        attn_implementation: attention kernel of transformers (``sdpa``, ``eager``, ``flash_attention_2``, ...), or a
            dict with one for each part of the model (``text_config``, ``vision_config``).
        device_map: placement of the model, as in ``from_pretrained``. A single device (``"cuda"``) needs no further
            package, all other values need accelerate. Random weights are created directly on a single device.
            ``"meta"`` reads no weights; :func:`~glimpse_lightning.backbones.shares.load_shares` loads them once the
            model is sharded.
        quantization: ``"bnb-4bit"`` or ``"bnb-8bit"`` (needs bitsandbytes and accelerate); ``None`` for none.
        prune_video: whether a pruner sees the tokens of videos; if not, they are kept like text, as in the reference.
        processor: settings of the image processor by name, such as ``{"do_pad": True}``: LLaVA-1.5 then pads images to
            squares with the mean colour, as the original does, instead of cropping them. The settings apply to images
            only, not to a video's frames. Default: as saved with the model.
        min_pixels: smallest number of pixels, to which smaller images are enlarged, in families whose processor has
            that setting (Qwen-VL); short for the setting in ``processor``.
        max_pixels: largest number of pixels, to which larger images are shrunk; otherwise as ``min_pixels``.
        **kwargs: further arguments of ``from_pretrained``. Those that locate files (``revision``, ``cache_dir``,
            ``token``, ``local_files_only``, ``trust_remote_code``) apply to configuration, processor and weights.
            ``torch_dtype`` is an old name of ``dtype``.

    Raises:
        GlimpseError: if the model, data type or setting of the processor does not exist, no adapter supports the
            model's architecture (checked before weights are read), the checkpoint's quantization is not supported, a
            needed package is missing, or an argument has no effect: a revision of a folder, or an argument about
            weights on the device ``"meta"``.
        UnknownArgumentError: for a keyword that ``from_pretrained`` does not take.

    Examples:
        >>> backbone = gl.load_backbone("glimpse-tiny")
        >>> batch = backbone.collate([gl.GlyphVQA("test")[0]])
        >>> batch.inputs["input_ids"].shape
        torch.Size([1, 265])
    """
    _check_keywords(name, kwargs)
    settings = _settings(processor, min_pixels=min_pixels, max_pixels=max_pixels)
    _check_folder(name)
    name = expanded(name)
    if "torch_dtype" in kwargs:  # its name until transformers 5
        dtype = _only_spelling(dtype, kwargs.pop("torch_dtype"))
    given = {key for key, value in {**kwargs, "quantization": quantization}.items() if value not in (None, False)}
    kind = _kind_of_device(device_map)
    config: dict[str, Any] = {}
    if not name.startswith(PREFIX):
        config = _config(name, kwargs, say=False)  # if it cannot be read, loading fails below with a message
    check_checkpoint(name, config, quantization)
    asked = dtype
    if dtype is None:
        dtype = _own(name, config)
    elif isinstance(dtype, str):
        dtype = auto_dtype(name, kind, **kwargs) if dtype == AUTO else dtype_named(dtype)
    if device_map != "meta":  # on which nothing is computed, and the weights are loaded later, with the warning
        what = "`dtype` asks for" if asked is not None else f"The weights of {name!r} are stored in"
        warn_if_slow(dtype, kind, what, "`dtype: auto` (`--model.dtype auto`)")
    if name.startswith(PREFIX):
        if options := sorted(given | settings.keys()):
            raise GlimpseError(f"Expected no {', '.join(options)} with the random weights of {name!r}; leave them out.")
        try:
            model = random_model(name, dtype, attn_implementation, device_map)
        except (ImportError, ValueError) as error:
            raise _explained(name, error) from error
        backbone = wrap_backbone(model, prune_video=prune_video)
        backbone.name = name
        return backbone
    source, where = source_of(name), _where(name, kwargs)
    empty = device_map == "meta"
    if empty and (useless := sorted(given - where.keys())):
        raise GlimpseError(f"Expected no {', '.join(useless)} with `device_map: meta`, which reads no weights.")
    if quantization is not None:
        kwargs["quantization_config"] = _quantization_config(quantization, dtype)
    device_map, device = (None, None) if empty else _placement(device_map, quantization)
    try:
        # First, because it is small: its errors come before gigabytes of weights are read.
        prepared = with_settings(load_processor(source, **where), settings, name)
        if empty:
            model = empty_model(source, dtype, attn_implementation, **where)
        else:
            model = AutoModelForImageTextToText.from_pretrained(
                source, dtype=dtype, attn_implementation=attn_implementation, device_map=device_map, **kwargs
            )
    except GlimpseError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise _explained(name, error) from error
    if device is not None:
        model.to(device)
    backbone = wrap_backbone(model.eval(), prepared, prune_video)
    backbone.name, backbone.revision, backbone.settings = name, where.get("revision"), settings
    return backbone


def _check_keywords(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise for a keyword that neither ``from_pretrained`` nor the model's configuration takes.

    Left to transformers, it ends in a TypeError of the model's class once the weights are downloaded. Which keywords
    ``from_pretrained`` takes by name depends on its version, so they are read from its code. Code of a model's
    repository may take any.
    """
    taken = _names_in_from_pretrained()
    others = {key: value for key, value in kwargs.items() if key not in taken}
    if name.startswith(PREFIX) or not others or kwargs.get("trust_remote_code"):
        return
    where = _where(name, kwargs)
    try:
        others = AutoConfig.from_pretrained(source_of(name), return_unused_kwargs=True, **where, **others)[1]
    except (OSError, ValueError, TypeError, AttributeError):
        return  # loading fails with a message
    check_arguments("`load_backbone`", others, [*_keywords(load_backbone), *_keywords(PreTrainedModel.from_pretrained)])


def _keywords(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is not each.empty]


def _names_in_from_pretrained() -> set[str]:
    """Names that occur in the code of ``from_pretrained``, among them those of all keywords that it takes."""
    found: set[str] = set()
    for kind in (PreTrainedModel, AutoModelForImageTextToText):
        code = inspect.unwrap(kind.from_pretrained).__code__
        found.update(code.co_varnames)
        for constant in code.co_consts:
            parts = constant if isinstance(constant, tuple) else (constant,)
            found.update(part for part in parts if isinstance(part, str))
    return found


def _settings(processor: Mapping[str, Any] | None, **bounds: int | None) -> dict[str, Any]:
    """Settings of the image processor, including those given as keywords of their own."""
    if not isinstance(processor or {}, Mapping):
        raise GlimpseError(
            f"Expected `processor` to be settings by name, such as {{'max_pixels': 1605632}}, but got an instance of "
            f"{type(processor).__name__}. A processor of your own goes to `gl.wrap_backbone(model, processor)`."
        )
    settings = {name: value for name, value in (processor or {}).items() if value is not None}
    for name, value in bounds.items():
        if value is not None and settings.setdefault(name, value) != value:
            raise GlimpseError(
                f"Expected `{name}` once, but got {value} and, in `processor`, {settings[name]}; leave one out."
            )
    return settings


def _where(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` in ``options`` that locate files, including the processor's."""
    code = {"trust_remote_code": options["trust_remote_code"]} if options.get("trust_remote_code") else {}
    return {**located(name, source_of(name), options), **code}


def _only_spelling(dtype: str | torch.dtype | None, torch_dtype: Any) -> str | torch.dtype | None:
    """``torch_dtype``, or an error if ``dtype`` was given with another value."""
    if dtype not in (None, "float32", torch_dtype):
        raise GlimpseError(f"Expected `dtype` or `torch_dtype`, but got {dtype!r} and {torch_dtype!r}; leave one out.")
    return torch_dtype


def auto_dtype(name: str, device: str, **kwargs: Any) -> torch.dtype:
    """The meaning of ``auto`` for the model ``name`` on a kind of ``device``.

    The data type in which its weights were saved, by its configuration; float32 if the configuration names none, or if
    it is half precision and the device is slow at it.
    """
    if name.startswith(PREFIX):
        return fast_dtype(device)
    return fast_dtype(device, saved_dtype(name, **kwargs))


def saved_dtype(name: str, **kwargs: Any) -> torch.dtype:
    """The data type in which a model's weights were saved; float32 if its configuration names none.

    Args:
        name: name of the model, as in :func:`load_backbone`.
        **kwargs: arguments of ``from_pretrained``, of which only those that locate files are used.

    Raises:
        GlimpseError: if there is no such model.
    """
    return _saved(_config(name, kwargs))


def own_dtype(name: str, **kwargs: Any) -> torch.dtype:
    """The data type in which a model is loaded by default; arguments and errors as in :func:`saved_dtype`."""
    return _own(name, {} if name.startswith(PREFIX) else _config(name, kwargs))


def _own(name: str, config: Mapping[str, Any]) -> torch.dtype:
    return torch.float32 if name in EMBEDDED else _saved(config)


def _saved(config: Mapping[str, Any]) -> torch.dtype:
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    found = (part.get(key) for part in parts for key in ("dtype", "torch_dtype"))  # the second before transformers 5
    return next((dtype_named(str(dtype)) for dtype in found if dtype not in (None, AUTO)), torch.float32)


def _config(name: str, options: Mapping[str, Any], say: bool = True) -> dict[str, Any]:
    """Contents of a model's config.json, read without running code of the model's repository.

    Raises:
        GlimpseError: if the file is no valid configuration; and, if ``say``, if it is missing.
    """
    try:
        found = PreTrainedConfig.get_config_dict(source_of(name), **_where(name, options))[0]
    except (OSError, ValueError) as error:
        if not say:
            return {}
        raise _explained(name, error) from error
    except (TypeError, AttributeError) as error:  # from a file without fields
        raise _explained(name, error) from error
    return checked(name, found)


def _kind_of_device(device_map: Any) -> str:
    """The kind of device on which the model will run: the named one, else the one that a Trainer chooses by itself."""
    named = isinstance(device_map, (str, torch.device)) and device_map not in (*SPREADING, "meta")
    return torch.device(device_map).type if named else default_device()


def wrap_backbone(model: PreTrainedModel, processor: Any | None = None, prune_video: bool = True) -> Backbone:
    """Make a backbone of an already loaded Hugging Face model; the model is not changed.

    Args:
        model: a supported model.
        processor: processor of the model; ``None``: the backbone takes ready tensor batches only.
        prune_video: whether a pruner sees the tokens of videos; if not, they are kept like text, as in the reference.

    Raises:
        GlimpseError: if no adapter supports the model's class.

    Examples:
        >>> tiny = gl.load_backbone("glimpse-tiny")
        >>> backbone = gl.wrap_backbone(tiny.unwrap(), tiny.processor)
        >>> len(backbone.layers)
        8
    """
    return family_of(type(model).__name__)(model, processor, prune_video)


def _explained(name: str, error: Exception) -> GlimpseError:
    """An ``error`` of ``from_pretrained`` or ``from_config``, with its remedy."""
    if isinstance(error, GlimpseError):
        return error
    reason = str(error).strip().splitlines()[0].rstrip(".")
    if not name.startswith(PREFIX) and not Path(source_of(name)).exists():
        reason += f"; there is no folder of this name either{_siblings(name)}"
    if command := installing(error):
        remedy = f"Install it: `{command}`."
    elif isinstance(error, ImportError):
        remedy = "Install what is missing, or choose another `attn_implementation` (sdpa needs nothing)."
    elif "attn_implementation" in reason:
        remedy = "Choose another `attn_implementation`, such as sdpa."
    else:
        remedy = (
            f"Expected {', '.join(EMBEDDED)}, a hub id, a folder that `from_pretrained` can read (without network, "
            f"download the model first and give its folder), or {PREFIX}<preset>."
        )
    return GlimpseError(f"Could not load backbone {name!r}: {reason}. {remedy}")


def _siblings(name: str) -> str:
    """Folders of a similar name next to where ``name`` would be, as a remark; empty where there is none."""
    path = Path(expanded(name))
    here = [each.name for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, here, 1)
    return f", but {path.parent / near[0]}" if near else ""


def _check_folder(name: str) -> None:
    """Raise if ``name`` can only be a folder, and there is none: a hub id has one slash, between two names."""
    if (name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name) and not Path(expanded(name)).is_dir():
        raise GlimpseError(
            f"There is no folder {name!r}{_siblings(name)}; check its path, or give {', '.join(EMBEDDED)}, a hub id, "
            f"or {PREFIX}<preset>."
        )


def _placement(device_map: Any, quantization: str | None) -> tuple[Any, Any]:
    """``(device map, device)``: the map for ``from_pretrained``, or the device to move the loaded model to."""
    if (device_map is None and quantization is None) or find_spec("accelerate") is not None:
        return device_map, None
    if quantization is not None or isinstance(device_map, dict) or device_map in SPREADING:
        what = f"quantization={quantization!r}" if quantization else f"device_map={device_map!r}"
        raise GlimpseError(
            f"`{what}` needs accelerate, which is not installed: `pip install accelerate`, or name one device, such as "
            "`device_map='cuda'`, without quantization."
        )
    return None, device_map


def _quantization_config(name: str, dtype: torch.dtype) -> BitsAndBytesConfig:
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
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
