"""A pruner's files: its weights as safetensors, the rest as ``config.json``, and on the Hub a card for readers."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from glimpse_lightning.core.visual_tokens import ModelFacts
from glimpse_lightning.policies.base import Policy
from glimpse_lightning.pruner.stage import PruneStage
from glimpse_lightning.reducers.base import Reducer
from glimpse_lightning.runtime import renames
from glimpse_lightning.runtime.dtypes import dtype_named
from glimpse_lightning.runtime.errors import GlimpseError
from glimpse_lightning.runtime.gathering import own_class
from glimpse_lightning.runtime.paths import read_json
from glimpse_lightning.runtime.version import __version__
from glimpse_lightning.runtime.whole_files import drafted
from glimpse_lightning.scorers.base import Scorer

CONFIG = "config.json"
WEIGHTS = "pruner.safetensors"
UPSTREAM_WEIGHTS = "new_modules_gp.pt"
"""The weights of a pruner of the reference, next to its ``config.json``."""
CARD = "README.md"
FORMAT = 1


@dataclass(frozen=True)
class SavedPruner:
    """Contents of a pruner's files.

    Args:
        stages: the stages; not built, where they were read.
        facts: sizes of the model that it was built for.
        weights: its state, by name.
        backbone: name of the model, for the reader.
        trained_on: name, fingerprint and image settings of the model it was trained on, where they are known.
        origin: the reference's ``config.json``, where it was read from one.
        origin_dtype: the data type that its weights had there.
    """

    stages: Sequence[PruneStage]
    facts: ModelFacts
    weights: Mapping[str, Tensor]
    backbone: str = ""
    trained_on: dict[str, Any] | None = None
    origin: dict[str, Any] | None = None
    origin_dtype: str | None = None


def write_pruner(saved: SavedPruner, folder: Path, card: str | None = None) -> Path:
    """Write a pruner to ``folder``: all of it, or nothing. A pruner that is already there is replaced.

    Args:
        card: text of a ``README.md`` to write along.

    Raises:
        GlimpseError: where the disk is full or the folder cannot be written, where it holds something else, or where
            the pruner cannot be described by importable classes and plain arguments.
    """
    config: dict[str, Any] = {"format": FORMAT, "glimpse_lightning": __version__, "backbone": saved.backbone}
    if saved.trained_on is not None:
        config |= {"trained_on": saved.trained_on, "backbone": saved.backbone or saved.trained_on["backbone"]}
    config |= {"facts": asdict(saved.facts), "stages": described_stages(saved.stages)}
    if saved.origin is not None:
        config |= {"origin": saved.origin, "origin_dtype": saved.origin_dtype}
    text = json.dumps(config, indent=2) + "\n"
    weights = save({name: value.detach().cpu().contiguous() for name, value in saved.weights.items()})
    with whole_or_nothing(folder) as temporary:
        (temporary / WEIGHTS).write_bytes(weights)
        (temporary / CONFIG).write_bytes(text.encode())
        if card is not None:
            (temporary / CARD).write_text(card, encoding="utf-8")
    return folder


def read_pruner(folder: Path) -> SavedPruner:
    """The contents of a folder that :func:`write_pruner` wrote.

    Raises:
        GlimpseError: where it holds no pruner, or an incomplete one.
    """
    if not (folder / CONFIG).is_file() and (folder / "pruner" / CONFIG).is_file():
        raise GlimpseError(f"Expected a pruner's folder, but {folder} is a run's: its pruner is {folder / 'pruner'}.")
    config = read_json(folder / CONFIG)
    if "stages" not in config or not (folder / WEIGHTS).is_file():
        raise GlimpseError(
            f"Expected {folder} to hold a pruner ({CONFIG} with {WEIGHTS}, or with the reference's "
            f"{UPSTREAM_WEIGHTS}), but found {sorted(p.name for p in folder.iterdir())}. Name the folder that "
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
    try:
        weights = load((folder / WEIGHTS).read_bytes())
    except SafetensorError as error:
        raise other_weights(folder / WEIGHTS, error) from error
    origin_dtype = config.get("origin_dtype")
    if origin_dtype is not None:
        _check_dtype(str(origin_dtype), folder / CONFIG)
    return SavedPruner(
        stages, facts, weights, config.get("backbone", ""), config.get("trained_on"), config.get("origin"), origin_dtype
    )


def other_weights(path: Path, error: Exception) -> GlimpseError:
    """The error for weights that do not belong to the ``config.json`` next to them."""
    return GlimpseError(
        f"{path} does not hold the weights that {CONFIG} next to it describes: {error}. It may be cut short or from "
        "another run or release: copy the folder again."
    )


def cannot_run(folder: Path, error: Exception) -> GlimpseError:
    """The error for a ``config.json`` whose settings no pruner can be made with."""
    return GlimpseError(
        f"{folder / CONFIG} does not describe a pruner that can run: {error} Correct it, or copy it again."
    )


def _check_dtype(name: str, path: Path) -> None:
    try:
        dtype_named(name)
    except GlimpseError as error:
        raise GlimpseError(
            f"`origin_dtype` in {path}: {error} Restore the file, or set it to the one that the reference's weights "
            "had."
        ) from error


def described_stages(stages: Sequence[PruneStage]) -> list[dict[str, Any]]:
    """Stages as a saved pruner holds them, by classes and plain arguments.

    Raises:
        GlimpseError: where a part cannot be described so.
    """
    return [
        {"after_layer": s.after_layer, "scorer": _describe(s.scorer), "policy": _describe(s.policy)}
        | {"reducer": _describe(s.reducer), "early_kv": s.early_kv, "positions": s.positions}
        for s in stages
    ]


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


def pruner_folder(path_or_hub_id: str | Path, where: Mapping[str, Any]) -> Path:
    """The folder of a pruner, downloaded where a repository is named.

    Args:
        where: version and place of the repository's files, as
            :func:`~glimpse_lightning.runtime.source.located` has them.

    Raises:
        GlimpseError: where there is no such folder or repository.
    """
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
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, UPSTREAM_WEIGHTS], **where))
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
        and not any((folder / weights).is_file() for weights in (WEIGHTS, UPSTREAM_WEIGHTS))
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
