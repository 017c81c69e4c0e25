"""FSDP2: every rank holds a share of each parameter, and gathers a unit whole only while it runs.

Units are the decoder's layers, the blocks of the vision tower, the embedding, the final norm and the head, and the
scorers: every module that the engine calls by itself has to be a unit, or its parameters would not be gathered. The
rest of the vision tower (patch embedding, merger) is small and frozen, and every rank keeps it whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from glimpse_lightning.runtime.errors import GlimpseError

if TYPE_CHECKING:
    from glimpse_lightning.backbones.base import Backbone
    from glimpse_lightning.model.pruned_vlm import PrunedVLM

ENTRANCES = ("run_first", "prefill", "generate", "glimpse_forward", "replay", "distill")
"""Methods of ``PrunedVLM`` that run its units; inside one, the gathering of a unit may overlap with the one before."""


def shard(
    model: PrunedVLM,
    mesh: DeviceMesh,
    gather_dtype: torch.dtype | None = None,
    fill: Callable[[], None] | None = None,
) -> None:
    """Shard a model in place over the one-dimensional ``mesh``; its trainable parameters have been chosen before.

    Args:
        gather_dtype: data type in which decoder layers and vision blocks are gathered (gradients are still reduced in
            float32); ``None``: the parameters' own.
        fill: function that gives parameters on the meta device their values, called once this rank's share is known;
            by default parameters have values already.

    Raises:
        GlimpseError: where a trained parameter belongs to no unit.
    """
    low = MixedPrecisionPolicy(param_dtype=gather_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = low if gather_dtype is not None else MixedPrecisionPolicy()
    backbone = model.backbone
    layers = list(backbone.layers)
    for block in blocks(backbone):
        # A layer stays gathered until another one runs: side streams call it right after the main stream does.
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=block not in layers)
    _hold_one(layers)
    for unit in _ends(backbone):
        fully_shard(unit, mesh=mesh)
    for scorer in [] if model.pruner is None else [stage.scorer for stage in model.pruner.stages]:
        for part in (scorer.glimpse, scorer):
            if isinstance(part, nn.Module) and any(not isinstance(p, DTensor) for p in part.parameters()):
                fully_shard(part, mesh=mesh, reshard_after_forward=False)  # small, and called by many layers
                for name in ("forward_rows", "raters"):
                    if hasattr(part, name):
                        register_fsdp_forward_method(part, name)
    rest = {name: p for name, p in model.named_parameters() if not isinstance(p, DTensor)}
    if trained := [name for name, p in rest.items() if p.requires_grad]:
        raise GlimpseError(
            f"Expected only decoder, embedding, head and scorers to be trained under FSDP2, but {trained[0]} (and "
            f"{len(trained) - 1} more) belong to none of them. Train it with `trainer.strategy: ddp`."
        )
    fully_shard(model, mesh=mesh, ignored_params=set(rest.values()))
    if fill is not None:
        fill()
    for name in ENTRANCES:
        register_fsdp_forward_method(model, name)
    model.run_first()  # FSDP2 takes the first module that runs for the root; evaluation calls parts of the model


def blocks(backbone: Backbone) -> list[nn.Module]:
    """Decoder layers and vision blocks: modules in a list whose class the model's own ``_no_split_modules`` names."""
    lists = [module for module in backbone.model.modules() if isinstance(module, nn.ModuleList)]
    known = (backbone.layers, getattr(backbone, "vision_blocks", None))
    names = backbone.no_split_modules
    return [b for group in lists for b in group if group in known or type(b).__name__ in names]


def _ends(backbone: Backbone) -> list[Any]:
    """Units before and after the layers; tied weights have to be in one."""
    embedding, head = backbone.model.get_input_embeddings(), backbone.lm_head
    tied = any(mine is theirs for mine in embedding.parameters() for theirs in head.parameters())
    return [backbone.decoder.norm, *([[embedding, head]] if tied else [embedding, head])]


def _hold_one(layers: list[nn.Module]) -> None:
    """Let each layer, when it runs, release the one that ran before it."""
    held: list[Any] = []

    def release(layer: nn.Module, *_: Any) -> None:
        if not held or held[-1] is not layer:
            for before in held:
                before.reshard()
            held[:] = [layer]

    for layer in layers:
        layer.register_forward_pre_hook(release)
