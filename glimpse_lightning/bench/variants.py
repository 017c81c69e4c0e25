"""The models that a benchmark compares, all over one backbone."""

from __future__ import annotations

import torch

from glimpse_lightning import scorers
from glimpse_lightning.backbones import load_backbone
from glimpse_lightning.backbones.base import Backbone
from glimpse_lightning.bench.recipes import pruners
from glimpse_lightning.bench.settings import Settings
from glimpse_lightning.latency.measure import HF, UNPRUNED, Variant
from glimpse_lightning.model.pruned_vlm import PrunedVLM
from glimpse_lightning.model.storage import load_pruner
from glimpse_lightning.policies import KeepRatio
from glimpse_lightning.pruner.pruner import Pruner
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.runtime.dtypes import default_device
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.scorers.base import Scorer


def backbone_of(settings: Settings) -> Backbone:
    """The model under test, on its device.

    Raises:
        GlimpseError: where it cannot be loaded, or the machine has no such ``device``.
    """
    device = settings.device
    if device == "auto":
        device = default_device()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise GlimpseError(f"Expected a CUDA device for `device: {device}`, but torch sees none; set `device: cpu`.")
    torch.manual_seed(0)
    return load_backbone(
        settings.model, dtype=settings.dtype, attn_implementation=settings.attn_implementation, device_map=device,
        processor=settings.processor, **settings.source,
    )  # fmt: skip


def variants(settings: Settings, backbone: Backbone) -> list[Variant]:
    """Hugging Face's own forward, ``PrunedVLM`` without pruning, and one variant for each K and retention, for each
    recipe and retention, or for the saved pruner.

    Raises:
        GlimpseError: for an unknown scorer, unknown arguments of it, a layer that the model lacks, or a recipe that
            cannot run.
    """
    cache = settings.cache_implementation
    found = [Variant(HF, backbone, cache=cache), Variant(UNPRUNED, backbone, PrunedVLM(backbone), cache=cache)]
    if settings.pruner is not None:
        saved = load_pruner(settings.pruner, **settings.pruner_source).requires_grad_(False)
        return [*found, Variant("pruner", backbone, PrunedVLM(backbone, saved), cache=cache)]
    if settings.recipes:
        for name, pruner, share in pruners(settings.recipes, settings.retention):
            model = PrunedVLM(backbone, pruner)
            pruner.to(backbone.model.dtype).requires_grad_(False)
            layer = pruner.stages[0].after_layer if len(pruner.stages) == 1 else None
            found.append(Variant(name, backbone, model, layer, share, cache))
        return found
    check_layers(settings, backbone)
    for layer in settings.after_layers:
        for share in settings.retention:
            pruner = Pruner([PruneStage(layer, scorer_of(settings), KeepRatio(float(share)))])
            model = PrunedVLM(backbone, pruner)
            pruner.to(backbone.model.dtype).requires_grad_(False)  # FLOP counting fails on tensors that need a gradient
            found.append(Variant(f"K={layer} r={share:g}", backbone, model, layer, float(share), cache))
    return found


def check_layers(settings: Settings, backbone: Backbone) -> None:
    """Raise where a layer of the settings is not before the model's last one."""
    for layer in settings.after_layers:
        if layer >= backbone.facts.num_layers - 1:
            raise GlimpseError(
                f"Expected `after_layers` below {backbone.facts.num_layers - 1}, the model's last layer, but got "
                f"{layer}; after it prefill saves nothing. Name earlier ones, such as `--after_layers "
                f"'[{backbone.facts.num_layers // 4}]'`."
            )


def scorer_of(settings: Settings) -> Scorer:
    """The scorer that the settings name, with fresh weights."""
    kind = getattr(scorers, settings.scorer, None) if settings.scorer in scorers.__all__ else None
    known = [name for name in scorers.__all__ if _is_scorer(getattr(scorers, name))]
    if kind is None or not _is_scorer(kind):
        raise GlimpseError(
            f"There is no scorer {settings.scorer!r}.{nearest(settings.scorer, known)} Scorers: {', '.join(known)}."
        )
    try:
        return kind(**settings.scorer_args)
    except TypeError as error:
        raise GlimpseError(
            f"`scorer_args` do not fit {settings.scorer}: {error}. Give its own, such as `--scorer_args '{{}}'`."
        ) from error


def _is_scorer(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Scorer) and kind is not Scorer
