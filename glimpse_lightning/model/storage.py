"""Pruners on disk: safetensors and a config.json; the reference's released pruners are read as well."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from glimpse_lightning.backbones.fingerprint import fingerprint
from glimpse_lightning.backbones.presets import PREFIX
from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.engine.pruner import Pruner, PruneStage, check_facts
from glimpse_lightning.model import upstream
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.runtime import renames
from glimpse_lightning.runtime.dtypes import dtype_named
from glimpse_lightning.runtime.errors import GlimpseError, nearest
from glimpse_lightning.runtime.gathering import own_class
from glimpse_lightning.runtime.source import NAMES, located
from glimpse_lightning.runtime.version import __version__
from glimpse_lightning.runtime.whole_files import drafted
from glimpse_lightning.scorers.base import Scorer

if TYPE_CHECKING:
    from glimpse_lightning.backbones.base import Backbone

__all__ = ["check_facts", "init_args", "load_pruner", "save_pruner"]

CONFIG = "config.json"
WEIGHTS = "pruner.safetensors"
FORMAT = 1


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
    if pruner.facts is None:
        raise GlimpseError(
            "Expected a pruner that was built for a model, but got one that has no weights yet. Attach it to a model "
            "first: `PrunedVLM(backbone, pruner)`, or `pruner.build(facts)`."
        )
    stages = described_stages(pruner)
    name, trained_on = (backbone, pruner.trained_on) if isinstance(backbone, str) else _identity(backbone)
    config: dict[str, Any] = {"format": FORMAT, "glimpse_lightning": __version__, "backbone": name}
    config |= {} if trained_on is None else {"trained_on": trained_on, "backbone": name or trained_on["backbone"]}
    config |= {"facts": asdict(pruner.facts), "stages": stages}
    if pruner.origin is not None:
        config |= {"origin": pruner.origin, "origin_dtype": pruner.origin_dtype}
    text = json.dumps(config, indent=2) + "\n"
    weights = pruner.state_dict() if weights is None else weights
    file = save({name: value.detach().cpu().contiguous() for name, value in weights.items()})
    with whole_or_nothing(Path(folder)) as temporary:
        (temporary / WEIGHTS).write_bytes(file)
        (temporary / CONFIG).write_bytes(text.encode())
    return Path(folder)


def described_stages(pruner: Pruner) -> list[dict[str, Any]]:
    """The stages as a saved pruner holds them, by classes and plain arguments.

    Raises:
        GlimpseError: where a part cannot be described so.
    """
    return [
        {"after_layer": s.after_layer, "scorer": _describe(s.scorer), "policy": _describe(s.policy)}
        | {"reducer": _describe(s.reducer), "early_kv": s.early_kv, "positions": s.positions}
        for s in _stages(pruner)
    ]


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
    if unknown := sorted(where.keys() - {*NAMES}):
        raise GlimpseError(f"`load_pruner` has no argument {unknown[0]!r}.{nearest(unknown[0], NAMES)}")
    folder = _local_folder(path_or_hub_id, located(str(path_or_hub_id), path_or_hub_id, where))
    if (folder / upstream.WEIGHTS).is_file():
        return upstream.read_pruner(folder)
    if not (folder / CONFIG).is_file() and (folder / "pruner" / CONFIG).is_file():
        raise GlimpseError(f"Expected a pruner's folder, but {folder} is a run's: its pruner is {folder / 'pruner'}.")
    config = upstream.read_json(folder / CONFIG)
    if "stages" not in config or not (folder / WEIGHTS).is_file():
        raise GlimpseError(
            f"Expected {folder} to hold a pruner ({CONFIG} with {WEIGHTS}, or with the reference's "
            f"{upstream.WEIGHTS}), but found {sorted(p.name for p in folder.iterdir())}. Name the folder that "
            "`save_pruner` or a training run's `pruner/` wrote."
        )
    if config.get("format") != FORMAT:
        raise GlimpseError(
            f"Expected {folder / CONFIG} in format {FORMAT}, but got {config.get('format')!r}. It was written by "
            f"glimpse_lightning {config.get('glimpse_lightning')}: install that version."
        )
    try:
        stages = [_stage(stage) for stage in config["stages"]]
        facts = ModelFacts(**config["facts"])
    except (KeyError, TypeError) as error:
        raise GlimpseError(
            f"{folder / CONFIG} does not describe a pruner of this version: {error}. It was written by "
            f"glimpse_lightning {config.get('glimpse_lightning')}: save the pruner anew, or install that version."
        ) from error
    pruner = Pruner(stages)
    pruner.origin, pruner.origin_dtype = config.get("origin"), config.get("origin_dtype")
    pruner.trained_on = None if any_backbone else config.get("trained_on")
    pruner.source = str(path_or_hub_id)
    if pruner.origin_dtype is not None:
        try:
            dtype_named(str(pruner.origin_dtype))
        except GlimpseError as error:
            raise GlimpseError(
                f"`origin_dtype` in {folder / CONFIG}: {error} Restore the file, or set it to the one that the "
                "reference's weights had."
            ) from error
    with torch.random.fork_rng(devices=[]):  # first values are drawn only to be replaced
        pruner.build(facts)
    try:
        pruner.load_state_dict(load((folder / WEIGHTS).read_bytes()))
    except (SafetensorError, RuntimeError) as error:
        raise GlimpseError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} beside it describes: {error}. It may be cut "
            "short or from another run: copy the folder again."
        ) from error
    return pruner.eval()


def _identity(backbone: Backbone) -> tuple[str, dict[str, Any] | None]:
    """A model's name; and its fingerprint and its image processor's settings, which random weights lack: they cannot be
    loaded again.
    """
    if backbone.name.startswith(PREFIX):
        return backbone.name, None
    settings = backbone.described()["image_processor"]
    return backbone.name, {"backbone": backbone.name, "weights": fingerprint(backbone), "image_processor": settings}


def init_args(part: object) -> dict[str, Any]:
    """Constructor arguments of a scorer, policy or reducer, read from its attributes of the same names.

    A block of arguments (a dataclass) is written as its own arguments, where the constructor takes those as well
    (``**keys``): files stay readable for versions that had no such block.
    """
    parameters = inspect.signature(own_class(part)).parameters.values()
    rest = [each.name for each in parameters if each.kind is each.VAR_KEYWORD]
    values = {each.name: _attribute(part, each.name) for each in parameters if each.name not in rest}
    blocks: dict[str, dict[str, Any]] = {
        name: asdict(value)
        for name, value in values.items()
        if rest and is_dataclass(value) and not isinstance(value, type)
    }
    for name in () if blocks else rest:
        values[name] = _attribute(part, name)
    plain = {name: _plain(part, name, value) for name, value in values.items() if name not in blocks}
    return plain | {name: _plain(part, name, value) for block in blocks.values() for name, value in block.items()}


def _attribute(part: object, name: str) -> Any:
    if not hasattr(part, name):
        raise GlimpseError(
            f"Expected {type(part).__name__} to keep its constructor argument `{name}` as an attribute of the same "
            f"name, so that it can be saved, but it has none. Add `self.{name} = {name}` to its constructor."
        )
    return getattr(part, name)


def _plain(part: object, name: str, value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, dict, type(None))):
        return value
    try:
        return list(value)
    except TypeError as error:
        raise GlimpseError(
            f"Expected argument `{name}` of {type(part).__name__} to be a number, a string or a list of them, so that "
            f"it can be saved, but got {type(value).__name__}."
        ) from error


def _stages(pruner: Pruner) -> Iterator[PruneStage]:
    for stage in pruner.stages:
        assert isinstance(stage, PruneStage)
        yield stage


def _describe(part: object) -> dict[str, Any]:
    cls = own_class(part)
    path = f"{cls.__module__}.{cls.__qualname__}"
    if cls.__module__ == "__main__" or "<locals>" in path:
        raise GlimpseError(
            f"Expected {cls.__name__} to be importable, so that a saved pruner can be read back, but it is defined as "
            f"{path}. Move the class to a module of its own."
        )
    return {"class_path": path, "init_args": init_args(part)}


def _stage(saved: dict[str, Any]) -> PruneStage:
    return PruneStage(
        after_layer=saved["after_layer"],
        scorer=_restore(saved["scorer"], Scorer),
        policy=_restore(saved["policy"], Policy),
        reducer=_restore(saved["reducer"], Reducer),
        early_kv=saved.get("early_kv", "prune"),  # missing in pruners saved before the option existed
        positions=saved.get("positions", "keep"),
    )


def _restore(saved: dict[str, Any], base: type) -> Any:
    module, _, name = saved["class_path"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise GlimpseError(
            f"The saved pruner uses {saved['class_path']}, which cannot be imported ({error}). Install the package "
            "that defines it."
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise GlimpseError(f"Expected {saved['class_path']} to be a {base.__name__}, but it is not. Correct {CONFIG}.")
    return cls(**renames.current(saved)["init_args"])


def _local_folder(path_or_hub_id: str | Path, where: Mapping[str, Any]) -> Path:
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    name = str(path_or_hub_id)
    if isinstance(path_or_hub_id, Path) or name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists():
        left = re.search(r"([^/]+)/fit_\d+/pruner/?$", name)
        by = (
            f"The `fit` of the recipe {left[1]!r} leaves one there: run it first"
            if left
            else ("A `fit` leaves one, `pruner/`, in the folder of its run: check the path")
        )
        raise GlimpseError(
            f"Expected a pruner's folder or a Hugging Face id `owner/name`, but {name} is no folder. {by}, or name "
            "another pruner."
        )
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, upstream.WEIGHTS], **where))
    except Exception as error:  # hub clients raise a dozen unrelated types: unknown id, no access, no network, ...
        raise GlimpseError(
            f"Expected a pruner's folder or a Hugging Face id, but {name} is no folder here, and could not be fetched "
            f"({type(error).__name__}: {error}). Check the spelling and the network, or fetch it elsewhere."
        ) from error


@contextmanager
def whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` if all went well, and leaves no trace if not."""
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not any((folder / weights).is_file() for weights in (WEIGHTS, upstream.WEIGHTS))
    ):
        raise GlimpseError(
            f"Expected {folder} to be new, empty, or to hold a saved pruner, but it holds something else, which saving "
            "would replace. Name another folder."
        )
    try:
        with drafted(folder.absolute()) as temporary:
            temporary.mkdir()
            yield temporary
    except OSError as error:
        raise GlimpseError(
            f"The pruner could not be saved to {folder}: {error.strerror or error}. Nothing was left there"
            f"{' but the pruner that it held before' if folder.exists() else ''}. Free some space or name a folder "
            "that can be written, and save again."
        ) from error
