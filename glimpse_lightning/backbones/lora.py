"""LoRA adapters in a backbone's decoder, through PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.gathering import release, whole

ADAPTER = "default"
"""Name of the adapter; a model may have several."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on linear layers of the decoder.

    Args:
        r: rank.
        alpha: numerator of the update's scale ``alpha / r``.
        dropout: dropout probability of the adapters' inputs, in training and in its rollouts.
        targets: last parts of the names of the linear layers that get an adapter; ``None``: all linear layers of the
            decoder (q, k, v, o, gate, up, down; as in GlimpsePrune's stage 2), but neither the vision tower nor the
            head.

    Examples:
        >>> objective = gl.objectives.Supervised(lora=gl.LoRA(r=8, alpha=16.0, targets=["q_proj", "v_proj"]))
        >>> objective.lora.r
        8
    """

    r: int = 32
    alpha: float = 64.0
    dropout: float = 0.0
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"Expected LoRA's `r` to be at least 1, but got {self.r}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Expected LoRA's `dropout` to be in [0, 1), but got {self.dropout}.")


def import_peft() -> Any:
    """The module ``peft``.

    Raises:
        GlimpseError: if PEFT is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise GlimpseError(
            "LoRA needs PEFT, which is not installed: `pip install -c constraints.txt 'glimpse-lightning[lora]'`."
        ) from error
    return peft


def add_lora(backbone: Backbone, lora: LoRA) -> None:
    """Add adapters to the decoder's layers; their initial update is 0. Existing adapters stay.

    Raises:
        GlimpseError: if PEFT is missing, or ``targets`` name no layer.
    """
    peft = import_peft()
    if lora_modules(backbone):
        return
    prefix = next(name for name, module in backbone.model.named_modules() if module is backbone.layers)
    linear = [name for name, module in backbone.layers.named_modules() if isinstance(module, nn.Linear)]
    names = sorted({name.rpartition(".")[2] for name in linear})
    unknown = sorted(set(lora.targets or ()) - set(names))
    if unknown or lora.targets == []:
        raise GlimpseError(
            f"Expected LoRA's `targets` to be out of {', '.join(names)}, but got {list(lora.targets or ())}."
        )
    chosen = [name for name in linear if lora.targets is None or name.rpartition(".")[2] in lora.targets]
    config = peft.LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=[f"{prefix}.{name}" for name in chosen],
    )  # fmt: skip
    peft.inject_adapter_in_model(config, backbone.model, adapter_name=ADAPTER)
    for module in lora_modules(backbone):
        module.eval()
        if module.get_base_layer().weight.is_meta:  # the layer's weights are loaded later, the adapters' are drawn here
            module.lora_A.to_empty(device="cpu")
            module.lora_B.to_empty(device="cpu")
            module.reset_lora_parameters(ADAPTER, init_lora_weights=True)
        for name, parameter in module.named_parameters():
            if "lora_" in name:  # in float32, because small updates are lost in bfloat16
                parameter.data = parameter.data.float()
    # Read by PEFT's own functions that save and load whole models.
    backbone.model.peft_config = {ADAPTER: config}


def lora_modules(backbone: Backbone) -> list[Any]:
    """The decoder's layers that have an adapter."""
    return [module for module in backbone.layers.modules() if hasattr(module, "lora_A")]


@contextmanager
def without_lora(backbone: Backbone) -> Iterator[None]:
    """Context in which the decoder computes without its adapters."""
    modules = lora_modules(backbone)
    for module in modules:
        module._disable_adapters = True  # `enable_adapters` would also switch gradients off and on again
    try:
        yield
    finally:
        for module in modules:
            module._disable_adapters = False


def save_lora(backbone: Backbone, folder: Path, write: bool = True) -> None:
    """Write the adapters as PEFT does (``adapter_config.json``, ``adapter_model.safetensors``).

    If the model is sharded, all ranks have to call this, one of them with ``write``.
    """
    peft = import_peft()
    release(backbone.model)
    state = peft.get_peft_model_state_dict(backbone.model, adapter_name=ADAPTER)
    weights = {name: whole(value).contiguous() for name, value in state.items()}
    if not write:
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS)
    config = backbone.model.peft_config[ADAPTER]
    config.base_model_name_or_path = backbone.name
    config.save_pretrained(str(folder))


def base_model(folder: Path) -> str:
    """Name of the model that the adapters in ``folder`` were trained on."""
    return str(_config(folder).base_model_name_or_path)


def _config(folder: Path) -> Any:
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise GlimpseError(
            f"Expected {folder} to hold LoRA adapters ({CONFIG} and {WEIGHTS}), but it does not. Name the `adapter/` "
            "folder of a finished run."
        )
    return import_peft().PeftConfig.from_pretrained(str(folder))


def load_lora(backbone: Backbone, folder: Path) -> None:
    """Load adapters that :func:`save_lora` or PEFT has written into the decoder.

    Raises:
        GlimpseError: if the folder holds no adapters, or those of another model.
    """
    peft, config = import_peft(), _config(folder)
    try:
        peft.inject_adapter_in_model(config, backbone.model, adapter_name=ADAPTER)
        result = peft.set_peft_model_state_dict(backbone.model, load_file(folder / WEIGHTS), adapter_name=ADAPTER)
    except (ValueError, RuntimeError) as error:
        raise GlimpseError(
            f"The adapters in {folder} do not fit backbone {backbone.name!r}: {str(error).splitlines()[0]} Use the "
            f"model that they were trained on ({config.base_model_name_or_path})."
        ) from error
    if result.unexpected_keys:
        raise GlimpseError(
            f"The adapters in {folder} do not fit backbone {backbone.name!r}: it has no {result.unexpected_keys[0]!r}. "
            f"Use the model that they were trained on ({config.base_model_name_or_path})."
        )


@torch.no_grad()
def merge_lora(backbone: Backbone) -> None:
    """Add the adapters' updates to the weights and remove the adapters, so that the model is a plain one again."""
    for name, module in list(backbone.model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(backbone.model.get_submodule(parent), child, module.get_base_layer())
    if hasattr(backbone.model, "peft_config"):
        del backbone.model.peft_config
