"""Loading of models that are too large for one rank: built without memory, sharded, and then loaded by shares.

Hugging Face's ``from_pretrained`` would read all weights on every rank. Here each rank reads only its own rows from the
safetensors files, so that no rank ever has the whole model in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.source import located

if TYPE_CHECKING:
    from glimpse_lightning.backbones.base import Backbone


def empty_model(
    source: str, dtype: torch.dtype, attn_implementation: str | dict[str, str], **where: Any
) -> PreTrainedModel:
    """The model in ``source`` with parameters on the meta device; its buffers are real.

    Args:
        source: hub id or folder.
        dtype: data type of the weights.
        attn_implementation: attention kernel, as in ``from_pretrained``.
        **where: arguments of ``from_pretrained`` that locate files.
    """
    config = AutoConfig.from_pretrained(source, **where)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
        module._is_hf_initialized = False
    model.initialize_weights()  # affects the buffers only, as parameters are on the meta device
    with suppress(OSError):  # without one, the defaults of its configuration apply
        model.generation_config = GenerationConfig.from_pretrained(source, **where)
    return model.eval()


def load_shares(backbone: Backbone, source: str, **where: Any) -> None:
    """Load the parameters that are on the meta device: this rank's rows of sharded ones, and others whole.

    Args:
        backbone: the backbone to fill.
        source: hub id or folder of its weights.
        **where: arguments of ``from_pretrained`` that locate files, as given when the backbone was loaded.

    Raises:
        GlimpseError: if ``source`` holds no safetensors, is quantized, or lacks a parameter.
    """
    model = backbone.model
    if getattr(model.config, "quantization_config", None) is not None:
        raise GlimpseError(
            f"{source} is quantized, and weights in that form cannot be shared out. Name the checkpoint that it was "
            "made from, or train with `trainer.strategy: ddp`."
        )
    owners: dict[str, list[tuple[nn.Module, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                # PEFT moves the weights of an adapted layer one level down.
                owners.setdefault(f"{path}.{name}".replace(".base_layer.", "."), []).append((module, name))
    renamed = _names(model, owners)
    for file in _files(source, where):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (it is no dict)
                places = owners.get(renamed(key))
                meta = getattr(*places[0]) if places else None
                if meta is not None and meta.is_meta:
                    _fill(owners, meta, _share(tensors.get_slice(key), meta))
    missing = [name for name, places in owners.items() if getattr(*places[0]).is_meta]
    if missing:
        raise GlimpseError(
            f"{source} lacks {len(missing)} of the model's parameters, {missing[0]!r} for example. Give a folder that "
            "`save_pretrained` wrote, or train with `trainer.strategy: ddp`, which loads as Hugging Face does."
        )


def _fill(owners: dict[str, list[tuple[nn.Module, str]]], meta: Tensor, value: Tensor) -> None:
    """Replace all uses of ``meta`` by ``value``: tied weights are in the file once, under one of their names."""
    parameter = nn.Parameter(value, requires_grad=meta.requires_grad)
    for module, name in [place for places in owners.values() for place in places]:
        if getattr(module, name) is meta:
            module.load_state_dict({name: parameter}, strict=False, assign=True)


def _share(rows: Any, like: Tensor) -> Tensor:
    """This rank's rows of a tensor in a file, in the type and the layout of ``like``."""
    if not isinstance(like, DTensor):
        return rows[:].to(like.dtype)
    mesh = like.device_mesh
    length = -(-like.shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * length, like.shape[0])
    end = min(start + length, like.shape[0])
    local = rows[start:end] if end > start else torch.empty(0, *like.shape[1:])
    local = local.to(mesh.device_type, like.dtype)
    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )  # fmt: skip


def _names(model: PreTrainedModel, known: dict[str, Any]) -> Any:
    """Function from names in a published file to those of the model, by Hugging Face's own rules."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping = get_model_conversion_mapping(model)
    converters = [change for change in mapping if isinstance(change, WeightConverter)]
    renamings: list[Any] = [change for change in mapping if not isinstance(change, WeightConverter)]

    def renamed(key: str) -> str:
        name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        if converted is not None:
            raise GlimpseError(
                f"{key} is stored in another form than {type(model).__name__} uses, so it cannot be loaded share by "
                "share. Save the model with `save_pretrained` and give that folder, or use `trainer.strategy: ddp`."
            )
        return name

    return renamed


def _files(source: str, where: Mapping[str, Any]) -> Iterator[Path]:
    folder = Path(source)
    if not folder.is_dir():
        found = located(source, source, where)
        folder = Path(snapshot_download(source, allow_patterns=["*.safetensors"], **found))
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise GlimpseError(f"Expected safetensors files in {source}, but found none; other formats load on ddp only.")
    yield from files
