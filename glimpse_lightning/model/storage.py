"""Pruners saved with the model that they were trained on, and loaded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from glimpse_lightning.backbones.fingerprint import fingerprint
from glimpse_lightning.backbones.presets import PREFIX
from glimpse_lightning.pruner.files import write_pruner
from glimpse_lightning.pruner.pruner import Pruner

if TYPE_CHECKING:
    from glimpse_lightning.backbones.base import Backbone

__all__ = ["load_pruner", "remember", "save_pruner"]


def save_pruner(
    pruner: Pruner, folder: str | Path, backbone: str | Backbone = "", weights: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a built pruner to ``folder``: all of it, or nothing. A pruner that is already there is replaced.

    Args:
        pruner: the pruner to save.
        folder: a folder that is new, empty, or holds a saved pruner.
        backbone: the model it was trained on, whose weights' fingerprint is saved along, so that another one is
            refused, and whose image processor's settings are, so that others are warned of; or only its name, for the
            reader.
        weights: the pruner's gathered state where it is sharded
            (:func:`glimpse_lightning.runtime.gathering.full_state`); by default its own state is saved.

    Raises:
        GlimpseError: where the disk is full or the folder cannot be written, where it holds something else, or where
            the pruner cannot be described by importable classes and plain arguments.

    Examples:
        >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.KeepRatio(0.1))
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> folder = gl.save_pruner(model.pruner, "pruner", model.backbone)
        >>> gl.load_pruner(folder).stages[0].after_layer
        1
    """
    if not isinstance(backbone, str):
        remember(pruner, backbone)
        backbone = backbone.name
    return write_pruner(replace(pruner.saved(weights), backbone=backbone), Path(folder))


def remember(pruner: Pruner, backbone: Backbone) -> None:
    """Note in a pruner which model it belongs to: name, fingerprint and image processor's settings.

    They are saved with it. Models of random weights are not noted, because they cannot be loaded again.
    """
    if backbone.name.startswith(PREFIX):
        pruner.trained_on = None
        return
    settings = backbone.described()["image_processor"]
    pruner.trained_on = {
        "backbone": backbone.name, "weights": fingerprint(backbone), "image_processor": settings,
    }  # fmt: skip


def load_pruner(path_or_hub_id: str | Path, any_backbone: bool = False, **where: Any) -> Pruner:
    """A pruner from a folder or a Hugging Face repository: saved here, or the reference's ``new_modules_gp.pt``.

    The pruner comes built for the model that it was trained on, in fp32 and in evaluation mode; attaching it to a model
    of another shape fails with an error that names both.

    Of the reference's pruners every variant runs that its configuration can express. Where ``use_ref_masks`` is set,
    the predictor does not run and the caller gives the masks, one tensor (boolean or probability, any shape) per image
    in the order of the prompts: ``PrunedVLM(backbone, pruner).prefill(..., state={"reference_masks": [mask]})``, the
    same with ``generate``. ``use_zero_masks`` takes no masks: every token scores as dropped, and only floor and anchors
    keep any. The switch can be set on any such pruner: ``pruner.stages[0].scorer.masks = "reference"``; with given
    masks the reference's cap and floor count image by image, hence ``pruner.stages[0].policy.per = "item"``. Video
    tokens, which the reference never prunes, are pruned unless the backbone was loaded with ``prune_video=False``.
    Earlier rows of deep supervision come from ``scorer.forward_rows``; the row of ``ori_attn_supervision``, which
    nothing reads, is not computed.

    Args:
        path_or_hub_id: the folder, or the repository's id.
        any_backbone: whether the pruner may be attached to a model of other weights than those it was trained on;
            refused by default.
        **where: version and place of a repository's files, as in ``load_backbone``: ``revision``, ``cache_dir``,
            ``token``, ``local_files_only``.

    Raises:
        GlimpseError: where there is no pruner, or an incomplete one, or a revision is given with a folder.

    Examples:
        >>> stage = gl.PruneStage(after_layer=1, scorer=gl.scorers.AttentionRank(), policy=gl.policies.KeepRatio(0.1))
        >>> model = gl.PrunedVLM(gl.load_backbone("glimpse-tiny"), gl.Pruner([stage]))
        >>> folder = gl.save_pruner(model.pruner, "pruner", model.backbone)
        >>> gl.load_pruner(folder).stages[0].after_layer
        1
    """
    return Pruner.from_pretrained(path_or_hub_id, any_backbone=any_backbone, **where)
